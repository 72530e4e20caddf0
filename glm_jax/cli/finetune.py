"""python -m glm_jax finetune --config=configs/finetune/ag_news.py --workdir=runs/ag_news"""

from absl import app, flags
from ml_collections import config_flags

from glm_jax.cli.common import log_to_stderr, one_line_errors
from glm_jax.training.host_memory import keep_freed_memory

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/finetune/; --config.KEY=VALUE.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run. The same command resumes it.")
_HOSTS = flags.DEFINE_string("hosts", None, "auto, slurm, tpu, off, or COORDINATOR:PORT,COUNT,INDEX (docs/launch.md).")
_HOST_TIMEOUT = flags.DEFINE_float("host_timeout", None, "Seconds within which every host must arrive; 300 by default.")


def _run(arguments: list[str]) -> None:
    """Fine-tunes a checkpoint on tasks, and scores the best one."""
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(arguments[1:])}")
    log_to_stderr()
    with one_line_errors():
        from glm_jax.distributed import processes

        processes.start(_HOSTS.value, _HOST_TIMEOUT.value)
        from glm_jax.tuning import run

        print(run.format_summary(run.finetune(_CONFIG.value, _WORKDIR.value)))


def main(arguments: list[str]) -> None:
    """The verb, with the arguments that follow it."""
    keep_freed_memory()  # before the config file imports JAX
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(_run, argv=["glm-jax finetune", *arguments])
