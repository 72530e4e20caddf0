"""python -m tools NAME: what maintainers measure, from the root of the repository. Not part of the package."""

import importlib
import sys

from glm_jax.cli.benchmark import QUICKSTART, Measurement, measure
from glm_jax.cli.common import choose

MEASUREMENTS = {
    "peer": Measurement(
        "one optimizer step beside the same model in PyTorch",
        QUICKSTART,
        {
            "repeats": (7, "steps of both, in turns"),
            "python": ("", "an interpreter that has torch, if this one has not"),
            "mode": ("compiled", "of PyTorch: compiled or eager"),
        },
        ("", "--python=torch/bin/python --mode=eager"),
    ),
    "growth": Measurement(
        "time and memory of a step by batch, row length, layers and devices",
        options={"picture": ("", "file to draw, .png or .svg"), "largest": (16, "how far each sweep goes, times")},
        examples=("--picture=docs/growth.png", "--largest=4"),
    ),
    "choices": Measurement(
        "what choices of a step move and hold on a TPU slice, by its compiler",
        "configs/pretrain/glm_large.py",
        {"topology": ("v5e:4x4", "as for python -m glm_jax plan"), "only": ((str,), "some of the choices, by name")},
        ("", "--topology=v5p:2x2x4 --only 'dense, remat full'"),
    ),
}
_OTHERS = {
    "survey": "plan many configs on every generation of TPU, for the table of docs/scale.md",
    "searches": "what TPE with pruning finds beside a grid, for docs/sweeps.md",
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the tool that the first argument names."""
    arguments = sys.argv[1:] if arguments is None else arguments
    helps = {name: measurement.help for name, measurement in MEASUREMENTS.items()} | _OTHERS
    name, rest = choose("python -m tools", "What maintainers of glm_jax measure.", helps, arguments)
    if name in MEASUREMENTS:
        measure(f"python -m tools {name}", MEASUREMENTS[name], f"tools.{name}", rest)
    else:
        importlib.import_module(f"tools.{name}").main(rest)


if __name__ == "__main__":
    main()
