"""python -m glm_jax.benchmark corruption | step --config=FILE: measurements as one JSON object on the last line."""

import argparse
import importlib.util
import json
import pathlib

from glm_jax.cli import keep_freed_memory, log_to_stderr, one_line_errors


def _config(path: str):
    spec = importlib.util.spec_from_file_location("config", pathlib.Path(path))
    if spec is None or not pathlib.Path(path).is_file():
        raise ValueError(f"{path} is no config file: name one of configs/")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def main() -> None:
    """Runs one measurement."""
    parser = argparse.ArgumentParser(prog="python -m glm_jax.benchmark", description="Measure, in one run.")
    what = parser.add_subparsers(dest="what", required=True)
    corruption = what.add_parser("corruption", help="rows to batches, examples a second")
    corruption.add_argument("--length", type=int, default=512, help="raw tokens of a row")
    corruption.add_argument("--batch", type=int, default=256, help="examples at once")
    step = what.add_parser("step", help="one optimizer step of a config")
    step.add_argument("--config", default="configs/pretrain/quickstart.py", help="a file of configs/")
    arguments = parser.parse_args()
    log_to_stderr()
    keep_freed_memory()
    with one_line_errors():
        import jax

        if arguments.what == "corruption":
            from glm_jax.benchmarks.corruption import run

            result = run(arguments.length, arguments.batch)
        else:
            from glm_jax.benchmarks.step import run

            result = run(_config(arguments.config))
        device = jax.devices()[0]
        print(json.dumps({"benchmark": arguments.what, "device": device.device_kind, "jax": jax.__version__, **result}))


if __name__ == "__main__":
    main()
