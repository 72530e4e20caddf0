"""python -m glm_jax benchmark VERB: measurements as one JSON object on the last line (docs/performance.md)."""

import json

from glm_jax.benchmarks.command import parse
from glm_jax.cli.common import log_to_stderr, one_line_errors
from glm_jax.training.host_memory import keep_freed_memory


def main(arguments: list[str]) -> None:
    """Runs one measurement."""
    log_to_stderr()
    keep_freed_memory()
    with one_line_errors():
        verb, measure = parse(arguments)

        import jax

        result = measure()
        device = jax.devices()[0].device_kind
        print(json.dumps({"benchmark": verb, "device": device, "jax": jax.__version__, **result}))
