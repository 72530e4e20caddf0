"""python -m glm_jax finetune --config=configs/finetune/ag_news.py --workdir=runs/ag_news"""

from collections.abc import Sequence

from glm_jax.cli.common import add_host_options, one_line_errors
from glm_jax.cli.configs import ConfigParser
from glm_jax.logs import log_to
from glm_jax.training.host_memory import keep_freed_memory

_PROG = "python -m glm_jax finetune"
_EXAMPLES = (
    f"{_PROG} --config=configs/finetune/ag_news.py --workdir=runs/ag_news --config.init_from=runs/quickstart",
    f"{_PROG} --config=configs/finetune/superglue.py:boolq --workdir=runs/boolq --config.init_from=CHECKPOINT",
)


def main(arguments: Sequence[str]) -> None:
    """Fine-tunes a checkpoint on tasks, and scores the best one."""
    summary = "Train a checkpoint on tasks, and score the best one."
    parser = ConfigParser(_PROG, summary, _EXAMPLES, defaults="finetune", required=("workdir",))
    parser.add_argument("--workdir", help="folder of the run; the same command resumes it; required")
    add_host_options(parser)
    options, config = parser.parse(arguments)
    log_to()
    with one_line_errors():
        from glm_jax.distributed import processes
        from glm_jax.tuning import run

        keep_freed_memory()
        processes.start(options.hosts, options.host_timeout)
        print(run.format_summary(run.finetune(config, options.workdir)))
