"""python -m glm_jax benchmark NAME: a measurement, whose results are one JSON object on the last line of the output.

To add one, write `run` in glm_jax/benchmarks/NAME.py and list it in MEASUREMENTS.
"""

import dataclasses
import importlib
import json
from collections.abc import Sequence
from typing import Any

from glm_jax.cli.common import Parser, choose, one_line_errors
from glm_jax.cli.configs import ConfigParser
from glm_jax.logs import log_to
from glm_jax.training.host_memory import keep_freed_memory

QUICKSTART = "configs/pretrain/quickstart.py"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What the function `run` of a module measures, and its arguments on the command line.

    Where it takes a config, that is its first argument, and `config` the default file. `options` are its keyword
    arguments: the default (a tuple for several values, a type where the default is None) and the help.
    """

    help: str
    config: str | None = None
    options: dict[str, tuple[Any, str]] = dataclasses.field(default_factory=dict)
    examples: tuple[str, ...] = ("",)  # arguments


MEASUREMENTS = {
    "step": Measurement(
        "one optimizer step of a config",
        QUICKSTART,
        {"repeats": (7, "steps, of which the median counts")},
        ("", "--config=configs/pretrain/glm_base.py --config.batch_size=16"),
    ),
    "corruption": Measurement(
        "rows to batches, examples a second",
        options={"length": (512, "raw tokens of a row"), "batch": (256, "examples at once")},
        examples=("", "--length=1024 --batch=64"),
    ),
    "attention": Measurement(
        "the attention backends of this device, side by side",
        options={
            "rows": (16, "of a batch"),
            "length": (568, "columns of a row"),
            "prefix": (435, "of them in Part A"),
            "heads": (16, "of 64 columns"),
            "dtype": ("bfloat16", "of the computation"),
            "dropout": (0.0, "rate"),
            "backends": ((str,), "some of them, by name"),
        },
        examples=("--dropout=0.1", "--rows=2 --dtype=float32 --backends dense chunked"),
    ),
    "decode": Measurement(
        "decoding with a model of a named size",
        options={
            "size": ("base", "base, large, 10b, …"),
            "dtype": ("float32", "of the computation"),
            "batches": ((1, 8, 32), "prompts at once"),
            "lengths": ((32, 128, 512), "new tokens"),
            "layers": (int, "fewer layers than the size has"),
        },
        examples=("", "--size=large --dtype=bfloat16 --batches 1 64"),
    ),
    "input": Measurement(
        "tokenization, packing and the pipeline, against what the step of the config consumes",
        QUICKSTART,
        {"megabytes": (4.0, "of text to tokenize"), "seconds": (3.0, "for each part of the pipeline")},
        ("", "--config=configs/pretrain/glm_base.py --seconds=10"),
    ),
    "compile": Measurement(
        "compilation by depth, and starts of a run with a cold and a warm cache",
        QUICKSTART,
        {
            "depths": ((12, 48), "layers, from few to many"),
            "width": (64, "of the models of these depths"),
            "size": ("base", "of the model that is started; 'config' takes the config's"),
        },
        ("", "--size=config"),
    ),
    "methods": Measurement(
        "what each tuning method costs, against full fine-tuning",
        "configs/finetune/ag_news.py",
        {
            "size": ("base", "of the checkpoint that it stands for"),
            "words": (200, "of every field of an example"),
            "repeats": (5, "pairs of steps, of which the median counts"),
            "methods": ((str,), "some of them, by name"),
        },
        ("", "--size=large --config.frozen_dtype=bfloat16 --methods lora p_tuning_v2"),
    ),
    "finetune": Measurement(
        "one step of a fine-tuning config on synthetic examples",
        "configs/finetune/ag_news.py",
        {"size": ("base", "of the checkpoint that it stands for"), "words": (200, "of every field of an example")},
        ("", "--config=configs/finetune/superglue.py:boolq --size=large"),
    ),
}


def main(arguments: Sequence[str]) -> None:
    """Runs one measurement."""
    prog = "python -m glm_jax benchmark"
    summary = "Measure one part on this machine. The last line of the output is a JSON object (docs/performance.md)."
    name, rest = choose(prog, summary, {name: one.help for name, one in MEASUREMENTS.items()}, arguments)
    measure(f"{prog} {name}", MEASUREMENTS[name], f"glm_jax.benchmarks.{name}", rest)


def measure(prog: str, measurement: Measurement, module: str, arguments: Sequence[str]) -> None:
    """Calls `run` of the module with what the command line says, and prints its result as JSON on the last line."""
    config, options = parse(prog, measurement, arguments)
    log_to()
    with one_line_errors():
        run = importlib.import_module(module).run
        keep_freed_memory()
        result = run(*config, **options)

        import jax

        device = jax.devices()[0].device_kind
        print(json.dumps({"benchmark": prog.split()[-1], "device": device, "jax": jax.__version__, **result}))


def parse(prog: str, measurement: Measurement, arguments: Sequence[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments of the measurement. Ends the process as `Parser` does."""
    summary, examples = f"Measure {measurement.help}.", [f"{prog} {words}".rstrip() for words in measurement.examples]
    if measurement.config:
        defaults = "finetune" if "finetune" in measurement.config else "pretrain"
        parser = ConfigParser(prog, summary, examples, defaults=defaults, file=measurement.config)
    else:
        parser = Parser(prog, summary, examples)
    for option, (default, text) in measurement.options.items():
        parser.add_argument(f"--{option}", help=text, **_kind(default))
    if isinstance(parser, ConfigParser):
        known, *config = parser.parse(arguments)
    else:
        known, config = parser.parse_args(arguments), []
    options = {name: getattr(known, name) for name in measurement.options}
    return tuple(config), {n: tuple(value) if isinstance(value, list) else value for n, value in options.items()}


def _kind(default: Any) -> dict[str, Any]:
    """What argparse needs to know of an option."""
    if isinstance(default, type):
        return {"type": default, "default": None}
    if isinstance(default, tuple):
        several = {"nargs": "+", "metavar": "N"}
        if isinstance(default[0], type):
            return {**several, "type": default[0], "default": ()}
        return {**several, "type": type(default[0]), "default": default}
    return {"type": type(default), "default": default}
