"""python -m glm_jax pretrain --config=configs/pretrain/quickstart.py --workdir=runs/quickstart"""

from collections.abc import Sequence

from glm_jax.cli.common import add_host_options, one_line_errors
from glm_jax.cli.configs import ConfigParser
from glm_jax.logs import log_to
from glm_jax.training.host_memory import keep_freed_memory

_PROG = "python -m glm_jax pretrain"
_EXAMPLES = (
    f"{_PROG} --config=configs/pretrain/quickstart.py --workdir=runs/quickstart",
    f"{_PROG} --config=configs/pretrain/glm_base.py --workdir=runs/base --config.batch_size=64 --profile=steps=10:15",
)


def main(arguments: Sequence[str]) -> None:
    """Trains what the config says."""
    parser = ConfigParser(_PROG, "Train a GLM on text by blank infilling.", _EXAMPLES, required=("workdir",))
    parser.add_argument("--workdir", help="folder of the run; the same command resumes it; required")
    parser.add_argument("--profile", help="steps=10:15 writes a trace of these steps to WORKDIR/profile")
    add_host_options(parser)
    options, config = parser.parse(arguments)
    log_to()
    with one_line_errors():
        from glm_jax.distributed import processes
        from glm_jax.training.pretraining import PretrainingTask
        from glm_jax.training.trainer import train_task

        keep_freed_memory()
        processes.start(options.hosts, options.host_timeout)
        train_task(PretrainingTask(config), options.workdir, profile=options.profile)
