"""python -m glm_jax report runs/verses"""

from collections.abc import Sequence

from glm_jax.cli.common import Parser, one_line_errors
from glm_jax.logs import log_to

_PROG = "python -m glm_jax report"
_EXAMPLES = (f"{_PROG} runs/verses", f"{_PROG} runs/verses runs/ag_news --out reports")


def main(arguments: Sequence[str]) -> None:
    """Writes report.html and report.md of complete sweeps."""
    parser = Parser(_PROG, "Write report.html and report.md of a complete sweep; the page needs no network.", _EXAMPLES)
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="the folder of a sweep")
    parser.add_argument("--out", help="folder of the report; by default that of the sweep")
    options = parser.parse_args(arguments)
    log_to()
    with one_line_errors():
        from glm_jax.reports.page import write_reports

        for page in write_reports(options.workdirs, options.out):
            print(page)
