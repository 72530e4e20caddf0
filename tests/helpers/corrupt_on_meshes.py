"""Corrupts the same rows without a mesh and on meshes of eight devices; a program for test_meshes.py.

Prints one line per case: whether the batch is bit for bit that of `corrupt` outside a mesh, and how it is sharded.
"""

import functools
import sys

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from glm_jax.corruption.config import CorruptionConfig
from glm_jax.corruption.corrupt import corrupt
from glm_jax.data.synthetic import SPECIAL, random_rows

CONFIGS = {
    "mixture": CorruptionConfig(1, 1, 1, task_masks=True, short_sequence_prob=0.3),
    "packed": CorruptionConfig(1, 0, 1, pack_objectives=True),
}


def main(config_name, axis_type):
    """All cases of one config and one type of mesh axes."""
    tokens, ends = random_rows(16, 64)
    rows = tokens, np.full(16, 64, np.int32), np.arange(16, dtype=np.uint32)
    key = jax.random.key(0)
    run = functools.partial(corrupt, config=CONFIGS[config_name], special=SPECIAL)
    expected = jax.device_get(run(key, *rows, ends))
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType[axis_type],) * 2)
    for spec in (PartitionSpec("data"), PartitionSpec(("data", "fsdp"))):
        on_mesh = [jax.device_put(array, NamedSharding(mesh, spec)) for array in rows]
        groups = [
            jax.device_put(array.reshape(2, 8, *array.shape[1:]), NamedSharding(mesh, PartitionSpec(None, *spec)))
            for array in rows
        ]
        batches = {"no context": run(key, *on_mesh, ends)}
        with jax.set_mesh(mesh):
            batches["only tokens on the mesh"] = run(key, on_mesh[0], *rows[1:], ends)
            batches["jit"] = jax.jit(run)(key, *on_mesh, ends)
            batches["vmap"] = jax.vmap(lambda *rows: run(key, *rows, ends))(*groups)
        for name, batch in batches.items():
            host_batch = jax.device_get(batch)
            if name == "vmap":
                host_batch = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), host_batch)
            equal = jax.tree.all(jax.tree.map(np.array_equal, host_batch, expected))
            print(f"{spec} | {name} | {'equal' if equal else 'DIFFERENT'} | {batch.tokens.sharding.spec}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
