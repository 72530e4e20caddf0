"""How the cost of a step grows: seconds and bytes by batch, row length, layers and devices, a small model."""

import contextlib
import dataclasses
import os
import pathlib

import jax
import numpy as np

from glm_jax import config as defaults
from glm_jax.benchmarks.step import open_step
from glm_jax.benchmarks.timing import matmul_flops_per_second, seconds

_BASE = {"batch": 4, "row length": 128, "layers": 4, "devices": 1}
_FIRST = {"batch": 1, "row length": 64, "layers": 1, "devices": 1}
_WIDTH, _HEADS = 256, 4


@dataclasses.dataclass(frozen=True)
class Point:
    """A step of one size."""

    seconds: float
    temporary_bytes: int  # of a device, beside state and rows
    state_bytes: int  # of a device
    useful_flops: float  # of all devices


def run(picture: str = "", largest: int = 16, repeats: int = 7) -> dict:
    """Sweeps one size at a time up to `largest` times its first; the others stay at 4 rows of 128 tokens, 4 layers.

    Devices are fake ones on a CPU: they share its cores, so the time of a fixed batch should stay as it is, and a
    device's part of the state should shrink. `picture` names a file for the plots.

    Raises ValueError for a `picture` that is neither .png nor .svg.
    """
    if picture and pathlib.Path(picture).suffix not in (".png", ".svg"):
        raise ValueError(f"picture {picture!r} must end in .png or .svg")
    if largest < 1:
        raise ValueError(f"largest {largest} must be at least 1")
    # More to a core and XLA's collectives between them run out of threads, and wait for ever.
    _fake_devices(min(largest, 8, 2 * (os.cpu_count() or 1)))
    sweeps: dict[str, dict[int, Point]] = {}
    for name, first in _FIRST.items():
        most = min(largest, len(jax.devices())) if name == "devices" else largest
        values = [first * 2**n for n in range(most.bit_length())]
        batch = {"batch": max(8, values[-1])} if name == "devices" else {}
        sweeps[name] = {value: measure(**{**_BASE, **batch, name: value}, repeats=repeats) for value in values}
    rate = matmul_flops_per_second()
    last = list(sweeps["batch"].values())[-1]
    if picture:
        draw(sweeps, picture)
    return {
        "value": last.useful_flops / last.seconds / 1e9,
        "unit": "useful GFLOP/s of the largest batch",
        "bound": rate / 1e9,
        "bound_unit": "GFLOP/s of a plain matrix product in the same run",
        "fraction_of_bound": last.useful_flops / last.seconds / rate,
        "width": _WIDTH,
        "sweeps": {
            name: {str(value): dataclasses.asdict(point) for value, point in points.items()}
            for name, points in sweeps.items()
        },
        "picture": picture or None,
        "counting": "least seconds of a step among several; temporaries and state of one device, as its compiler "
        "reports them; useful work as in glm_jax/training/flops.py",
    }


def _fake_devices(count: int) -> None:
    """Splits a CPU into `count` devices, where JAX has not been used yet; elsewhere there are those there are."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)


def measure(**sizes: int) -> Point:
    """One step; `sizes` are those of `_BASE`, and `repeats`."""
    config = defaults.pretrain()
    length, layers, devices = sizes["row length"], sizes["layers"], sizes["devices"]
    config.batch_size, config.data.sequence_length = sizes["batch"], length
    config.model.update({
        "num_layers": layers, "hidden_size": _WIDTH, "num_heads": _HEADS, "max_position_embeddings": length,
        "dtype": "float32", "hidden_dropout": 0.0, "attention_dropout": 0.0,
    })  # fmt: skip
    config.mesh.fsdp = devices
    with open_step(config, jax.devices()[:devices]) as step:
        memory = step.built.train_step.lower(step.state[0], step.rows).compile().memory_analysis()
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(step.state[0]))
        spent = seconds(step, repeats=sizes["repeats"], choose=min)
        return Point(spent, memory.temp_size_in_bytes, held, step.flops)


def draw(sweeps: dict[str, dict[int, Point]], path: str) -> None:
    """One column a size: seconds above, bytes below, both axes logarithmic; dashed, what the useful work says."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(sweeps), figsize=(13, 6), layout="constrained", sharex="col")
    for column, (name, points) in enumerate(sweeps.items()):
        sizes, time, memory = list(points), axes[0][column], axes[1][column]
        time.plot(sizes, [1e3 * p.seconds for p in points.values()], marker="o", label="step")
        scale = np.exp(np.mean([np.log(p.seconds / p.useful_flops) for p in points.values()]))
        work = [1e3 * scale * p.useful_flops for p in points.values()]
        time.plot(sizes, work, linestyle="--", color="gray", label="useful work, scaled to fit")
        memory.plot(sizes, [p.temporary_bytes / 2**20 for p in points.values()], marker="o", label="temporaries")
        memory.plot(sizes, [p.state_bytes / 2**20 for p in points.values()], marker="s", label="state")
        memory.set_xlabel(name)
        for plot in (time, memory):
            plot.set_xscale("log", base=2)
            plot.set_yscale("log", base=2)
            plot.yaxis.set_major_formatter(lambda value, _: f"{value:g}" if value >= 1 else f"{value:.2g}")
            plot.set_xticks(sizes, [str(size) for size in sizes])
            plot.grid(alpha=0.3)
            low, high = plot.get_ylim()
            if high < 8 * low:  # a tenth more would fill the picture, and no power of two would be on the axis
                middle = (low * high) ** 0.5
                plot.set_ylim(middle / 8**0.5, middle * 8**0.5)
    axes[0][0].set_ylabel("milliseconds")
    axes[1][0].set_ylabel("MiB of a device")
    axes[0][0].legend(fontsize=8)
    axes[1][0].legend(fontsize=8)
    temporary = pathlib.Path(path).with_name(f".{os.getpid()}.{pathlib.Path(path).name}")
    figure.savefig(temporary, dpi=100)
    pyplot.close(figure)
    os.replace(temporary, path)
