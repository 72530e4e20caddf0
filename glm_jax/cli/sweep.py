"""python -m glm_jax sweep --config=configs/sweep/verses.py --workdir=runs/verses"""

import shlex
from collections.abc import Sequence

from glm_jax.cli.common import one_line_errors
from glm_jax.cli.configs import ConfigParser
from glm_jax.logs import log_to

_PROG = "python -m glm_jax sweep"
_EXAMPLES = (
    f"{_PROG} --config=configs/sweep/verses.py --workdir=runs/verses --config.base.init_from=runs/quickstart",
    f"{_PROG} --status --workdir=runs/verses",
)


def main(arguments: Sequence[str]) -> None:
    """Searches hyperparameters for each candidate, and tests the best of each; or shows how far a sweep is."""
    summary = "Compare candidates, each with hyperparameters chosen on the validation split, on the test split."
    parser = ConfigParser(_PROG, summary, _EXAMPLES, defaults="sweep", required=("workdir",), without_config="status")
    parser.add_argument("--workdir", help="folder of the sweep; the same command goes on with it; required")
    parser.add_argument("--status", action="store_true", help="print how far the sweep in --workdir is, and end")
    parser.add_argument(
        "--shard", metavar="I/N", help="this machine runs share I (from 0) of N, on a disk that all see"
    )
    options, config = parser.parse(arguments)
    log_to()
    with one_line_errors():
        if options.status:
            from glm_jax.sweeps.status import format_status

            print(format_status(options.workdir))
            return
        from glm_jax.sweeps import summary as summary_lib
        from glm_jax.sweeps.run import sweep
        from glm_jax.sweeps.space import Shard, SweepError

        index, _, count = (options.shard or "0/1").partition("/")
        if not (index.isdigit() and count.isdigit()):
            raise SweepError(f"--shard={options.shard}: write I/N, such as 0/4")
        command = shlex.join(["python", "-m", "glm_jax", "sweep", *arguments])
        results = sweep(config, options.workdir, Shard(int(index), int(count)), command)
        print(summary_lib.format_results(results))
        print(f"report: python -m glm_jax report {options.workdir}")
