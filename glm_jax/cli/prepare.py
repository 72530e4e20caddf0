"""python -m glm_jax prepare --config=configs/pretrain/glm_10b.py [-- --runner=DataflowRunner …]"""

import itertools
from collections.abc import Sequence

from glm_jax.cli.common import one_line_errors
from glm_jax.cli.configs import ConfigParser
from glm_jax.logs import log_to

_PROG = "python -m glm_jax prepare"
_EXAMPLES = (
    f"{_PROG} --config=configs/pretrain/quickstart.py",
    f"{_PROG} --config=configs/pretrain/glm_10b.py -- --runner=DataflowRunner   # options of Apache Beam",
)


def main(arguments: Sequence[str]) -> None:
    """Tokenizes a config's text as its run would: on this machine, or with Apache Beam where options follow --."""
    ours = list(itertools.takewhile(lambda word: word != "--", arguments))
    beam_options = list(arguments[len(ours) + 1 :])
    _, config = ConfigParser(_PROG, "Tokenize the text of a config as its run would.", _EXAMPLES).parse(ours)
    log_to()
    with one_line_errors():
        from glm_jax import data

        if not beam_options:
            data.load(config.data.to_dict())
            return
        from glm_jax.data.beam import prepare_all

        prepare_all(data.DataSpec.from_dict(config.data.to_dict()), beam_options)
