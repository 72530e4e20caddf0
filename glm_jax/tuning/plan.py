"""What a fine-tuning config needs on a TPU topology: its step compiled without hardware and without its checkpoint."""

from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from glm_jax.distributed import sharding
from glm_jax.files import text_table
from glm_jax.planning import estimate, topologies
from glm_jax.planning.estimate import HEADROOM
from glm_jax.training import setup
from glm_jax.tuning.synthetic import synthetic_task


def plan(
    config: ConfigDict, topology: str, slices: int = 1, *, size: str = "10b", words: int = 500,
    methods: Sequence[str] = (),
) -> list[dict[str, Any]]:  # fmt: skip
    """The plan of each of `methods`, by default the config's, for a checkpoint of a named `size`, ready for JSON.

    Rows are as long as the task's examples of `words` words a field. Keys are those of `estimate.plan`, and
    "trained_parameters", "frozen_bytes" and "optimizer_bytes" of a chip.

    Raises ValueError for a config or topology that cannot be, PlanningError without a fitting libtpu.
    """
    chip, devices = topologies.devices(topology, slices)
    return [
        _plan_method(config, name, chip, devices, topology if slices == 1 else f"{slices} x {topology}", size, words)
        for name in methods or (config.method,)
    ]


def _plan_method(config, name, chip, devices, topology, size, words):
    config = config.copy_and_resolve_references()
    config.method = name
    if name == "classifier":
        config.head = "classifier"
    training, rows = synthetic_task(config, size, words)
    config = training.config
    mesh, rules = setup.check_mesh(config, devices)
    built = training.make_setup(setup.resolve_durations(config, rows=10**6), mesh, rules)
    where = sharding.batch_sharding(mesh, rules)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), rows)
    compiled = estimate.compile_setup(config, chip, built, abstract)
    state = built.abstract_state
    return {
        "method": name,
        "topology": topology,
        "chips": mesh.size,
        "mesh": dict(mesh.shape),
        "remat": built.model.config.remat,
        "batch_size": config.batch_size,
        "columns": int(rows.tokens.shape[1]),
        "hbm_bytes": chip.hbm_bytes,
        "trained_parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "frozen_bytes": estimate.bytes_on_a_chip(state.frozen),
        "optimizer_bytes": estimate.bytes_on_a_chip(state.opt_state),
        "compile_seconds": compiled.seconds,
        **estimate.memory_of(compiled),
    }


def plan_table(plans: Sequence[dict[str, Any]]) -> str:
    """A line for each method; memory is of a chip."""
    first = plans[0]
    mesh = " x ".join(f"{axis}={size}" for axis, size in first["mesh"].items())
    rows = [("method", "trained", "frozen GB", "optimizer GB", "temporaries GB", "peak GB", "fits")]
    for one in plans:
        gigabytes = [
            f"{one[key] / 1e9:.2f}" for key in ("frozen_bytes", "optimizer_bytes", "temporary_bytes", "peak_bytes")
        ]
        rows.append((one["method"], f"{one['trained_parameters']:,}", *gigabytes, "yes" if one["fits"] else "NO"))
    lines = [
        f"{first['topology']}, {first['chips']} chips of {first['hbm_bytes'] / 1e9:.2f} GB, mesh {mesh}; "
        f"{first['batch_size']} rows of {first['columns']} columns, remat {first['remat']!r}",
        *text_table(rows),
    ]
    if not all(one["fits"] for one in plans):
        lines.append(f"NO: less than {100 * HEADROOM:.0f} % of HBM stays free")
    return "\n".join(lines)
