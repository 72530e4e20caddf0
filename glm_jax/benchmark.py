"""python -m glm_jax.benchmark corruption | step | decode: measurements as one JSON object on the last line."""

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
    decode = what.add_parser("decode", help="writing answers with a model of a named size")
    decode.add_argument("--size", default="base", help="base, large, 10b, …")
    decode.add_argument("--dtype", default="float32", help="of the computation")
    decode.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="prompts at once")
    decode.add_argument("--lengths", type=int, nargs="+", default=[32, 128, 512], help="new tokens")
    decode.add_argument("--layers", type=int, help="fewer layers than the size has")
    arguments = parser.parse_args()
    log_to_stderr()
    keep_freed_memory()
    with one_line_errors():
        import jax

        if arguments.what == "corruption":
            from glm_jax.benchmarks.corruption import run

            result = run(arguments.length, arguments.batch)
        elif arguments.what == "decode":
            from glm_jax.benchmarks.decode import run

            fewer = {"num_layers": arguments.layers} if arguments.layers else {}
            batches, lengths = tuple(arguments.batches), tuple(arguments.lengths)
            result = run(arguments.size, arguments.dtype, batches=batches, lengths=lengths, **fewer)
        else:
            from glm_jax.benchmarks.step import run

            result = run(_config(arguments.config))
        device = jax.devices()[0]
        print(json.dumps({"benchmark": arguments.what, "device": device.device_kind, "jax": jax.__version__, **result}))


if __name__ == "__main__":
    main()
