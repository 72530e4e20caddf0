"""python -m glm_jax pretrain --config=configs/pretrain/quickstart.py --workdir=runs/quickstart"""

from absl import app, flags
from ml_collections import config_flags

from glm_jax.cli.common import log_to_stderr, one_line_errors
from glm_jax.training.host_memory import keep_freed_memory

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/; --config.KEY=VALUE replaces a key.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run. The same command resumes it.")
_HOSTS = flags.DEFINE_string("hosts", None, "auto, slurm, tpu, off, or COORDINATOR:PORT,COUNT,INDEX (docs/launch.md).")
_HOST_TIMEOUT = flags.DEFINE_float("host_timeout", None, "Seconds within which every host must arrive; 300 by default.")
_PROFILE = flags.DEFINE_string("profile", None, "steps=10:15 writes a trace of these steps to WORKDIR/profile.")


def _run(arguments: list[str]) -> None:
    """Trains what the config says."""
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(arguments[1:])}")
    log_to_stderr()
    with one_line_errors():
        from glm_jax.distributed import processes

        processes.start(_HOSTS.value, _HOST_TIMEOUT.value)
        from glm_jax.training.pretraining import PretrainingTask
        from glm_jax.training.trainer import train_task

        train_task(PretrainingTask(_CONFIG.value), _WORKDIR.value, profile=_PROFILE.value)


def main(arguments: list[str]) -> None:
    """The verb, with the arguments that follow it."""
    keep_freed_memory()  # before the config file imports JAX
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(_run, argv=["glm-jax pretrain", *arguments])
