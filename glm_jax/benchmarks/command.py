"""The command line of `python -m glm_jax benchmark`: which measurements there are, and what each can be told."""

import argparse
import dataclasses
import functools
import importlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

_QUICKSTART = "configs/pretrain/quickstart.py"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The function `run` of glm_jax/benchmarks/VERB.py; where it takes a config, that is its first argument.

    `options` are its keyword arguments: default (a tuple for several values, a type where None is) and help.
    """

    help: str
    config: str | None = None
    options: dict[str, tuple[Any, str]] = dataclasses.field(default_factory=dict)


MEASUREMENTS = {
    "step": Measurement("one optimizer step of a config", _QUICKSTART, {"repeats": (7, "steps, whose median counts")}),
    "corruption": Measurement(
        "rows to batches, examples a second",
        options={"length": (512, "raw tokens of a row"), "batch": (256, "examples at once")},
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
    ),
    "decode": Measurement(
        "writing answers with a model of a named size",
        options={
            "size": ("base", "base, large, 10b, …"),
            "dtype": ("float32", "of the computation"),
            "batches": ((1, 8, 32), "prompts at once"),
            "lengths": ((32, 128, 512), "new tokens"),
            "layers": (int, "fewer layers than the size has"),
        },
    ),
    "input": Measurement(
        "tokenisation, packing and the pipeline, against what the step of the config eats",
        _QUICKSTART,
        {"megabytes": (4.0, "of text to tokenise"), "seconds": (3.0, "for each part of the pipeline")},
    ),
    "compile": Measurement(
        "compilation by depth, and starts of a run with a cold and a warm cache",
        _QUICKSTART,
        {
            "depths": ((12, 48), "layers, from few to many"),
            "width": (64, "of the models of these depths"),
            "size": ("base", "of the model that is started; 'config' takes the config's"),
        },
    ),
    "finetune": Measurement(
        "one step of a fine-tuning config on made-up examples",
        "configs/finetune/ag_news.py",
        {"size": ("base", "of the checkpoint that it stands for"), "words": (200, "of every field of an example")},
    ),
    "peer": Measurement(
        "one optimizer step beside the same model in PyTorch",
        _QUICKSTART,
        {
            "repeats": (7, "steps of both, in turns"),
            "python": ("", "an interpreter that has torch, if this one has not"),
            "mode": ("compiled", "of PyTorch: compiled or eager"),
        },
    ),
    "growth": Measurement(
        "time and memory of a step by batch, row length, layers and devices",
        options={"picture": ("", "file to draw, .png or .svg"), "largest": (16, "how far each sweep goes, times")},
    ),
    "choices": Measurement(
        "what choices of a step move and hold on a TPU slice, by its compiler",
        "configs/pretrain/glm_large.py",
        {"topology": ("v5e:4x4", "as for glm_jax.plan"), "only": ((str,), "some of the choices, by name")},
    ),
}


def parse(arguments: Sequence[str]) -> tuple[str, Callable[[], dict[str, Any]]]:
    """The verb, and the measurement with all that it was told.

    Ends the process for a wrong verb or option, with what there is; raises ValueError for a config that cannot be read.
    """
    parser = argparse.ArgumentParser(prog="python -m glm_jax benchmark", description="Measure, in one run.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, measurement in MEASUREMENTS.items():
        note = None
        if measurement.config:
            note = f"--config=FILE takes another config than {measurement.config}; --config.KEY=VALUE replaces a key."
        sub = verbs.add_parser(name, help=measurement.help, description=measurement.help, epilog=note)
        for option, (default, text) in measurement.options.items():
            sub.add_argument(f"--{option}", help=text, **_kind(default))
    known, rest = parser.parse_known_args(arguments)
    options = vars(known)
    verb = options.pop("verb")
    measurement = MEASUREMENTS[verb]
    for_config = []
    if measurement.config:
        rest = _joined(rest)
        for_config = [word for word in rest if word.startswith("--config")]
    if unknown := [word for word in rest if word not in for_config]:
        parser.error(f"{verb} does not know {unknown[0]!r}; see python -m glm_jax benchmark {verb} --help")
    config = [read_config(measurement.config, for_config)] if measurement.config else []
    module = importlib.import_module(f"glm_jax.benchmarks.{verb}")
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return verb, functools.partial(module.run, *config, **options)


def _joined(words):
    """`--config.KEY VALUE` as one word, as `--config.KEY=VALUE` is."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1].startswith("--config") and "=" not in joined[-1] and not word.startswith("--"):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _kind(default):
    if isinstance(default, type):
        return {"type": default, "default": None}
    if isinstance(default, tuple):
        several = {"nargs": "+", "metavar": "N"}
        first = default[0]
        return {**several, "type": first, "default": ()} if isinstance(first, type) else {
            **several, "type": type(first), "default": default
        }  # fmt: skip
    return {"type": type(default), "default": default}


def read_config(default: str, arguments: Sequence[str]) -> Any:
    """The config of `--config=FILE` (else `default`) with the keys that `--config.KEY=VALUE` replaces.

    Raises ValueError for a file that cannot be read, an unknown key, or a value of another type.
    """
    from absl import flags
    from ml_collections import config_flags

    files = [word.partition("=")[2] for word in arguments if word.startswith("--config=")] or [default]
    for file in files:
        if not pathlib.Path(file.partition(":")[0]).is_file():
            raise ValueError(f"{file} is no config file: name one of configs/")
    given = [f"--config={files[-1]}", *(word for word in arguments if not word.startswith("--config="))]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=given)
        values(["benchmark", *given])
        return values.config
    except (flags.Error, LookupError, AttributeError, TypeError, ValueError, OSError) as error:
        message = str(error).strip().splitlines()[-1]  # before it, a traceback of the config file
        raise ValueError(f"{' '.join(given)}: {message}") from error
