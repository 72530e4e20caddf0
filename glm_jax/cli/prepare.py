"""python -m glm_jax prepare --config=configs/pretrain/glm_10b.py [-- --runner=DataflowRunner …]"""

from absl import app, flags
from ml_collections import config_flags

from glm_jax.cli.common import log_to_stderr, one_line_errors

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/; --config.KEY=VALUE replaces a key.")


def _run(arguments: list[str]) -> None:
    """Tokenises a config's text as its run would: on this machine, or with Apache Beam where options follow --."""
    log_to_stderr()
    with one_line_errors():
        from glm_jax import data

        if not arguments[1:]:
            data.load(_CONFIG.value.data.to_dict())
            return
        from glm_jax.data.beam import prepare_all

        prepare_all(data.DataSpec.from_dict(_CONFIG.value.data.to_dict()), arguments[1:])


def main(arguments: list[str]) -> None:
    """The verb, with the arguments that follow it."""
    flags.mark_flag_as_required("config")
    app.run(_run, argv=["glm-jax prepare", *arguments])
