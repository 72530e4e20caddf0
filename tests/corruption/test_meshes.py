"""`corrupt` gives the same batch without a mesh, on meshes of every axis type, in jit and in vmap."""

import functools
import subprocess
import sys

import jax
import numpy as np
import pytest

from glm_jax.corruption.config import CorruptionConfig
from glm_jax.corruption.corrupt import corrupt
from glm_jax.data.synthetic import SPECIAL, random_rows
from tests.helpers.compiler_flags import fake_devices
from tests.helpers.paths import ROOT


@pytest.mark.parametrize("axis_type", ["Explicit", "Auto"])
@pytest.mark.parametrize("config", ["mixture", "packed"])
@pytest.mark.thorough
def test_batches_are_equal_on_meshes(config, axis_type):
    arguments = [sys.executable, "-m", "tests.helpers.corrupt_on_meshes", config, axis_type]
    done = subprocess.run(arguments, env=fake_devices(8), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split(" | ") for line in done.stdout.splitlines()]
    assert len(lines) == 8
    assert {line[2] for line in lines} == {"equal"}, done.stdout
    for spec, name, _, sharding in lines:
        if axis_type == "Explicit" and name != "vmap":  # the batch is sharded as the rows are
            assert sharding.startswith(spec[:-1].rstrip(",")), (spec, name, sharding)


@pytest.mark.thorough
def test_batches_are_equal_on_an_explicit_mesh_of_one_device():
    """`jax.make_mesh` makes Explicit axes unless told otherwise."""
    tokens, ends = random_rows(4, 32)
    rows = tokens, np.full(4, 32, np.int32), np.arange(4, dtype=np.uint32)
    run = functools.partial(corrupt, config=CorruptionConfig(short_sequence_prob=0.5), special=SPECIAL)
    expected = run(jax.random.key(0), *rows, ends)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    with jax.set_mesh(mesh):
        batch = run(jax.random.key(0), *jax.device_put(rows, sharding), ends)
    jax.tree.map(np.testing.assert_array_equal, batch, expected)


@pytest.mark.thorough
def test_batches_are_equal_in_vmap_and_jit():
    """Over groups of rows, and over keys."""
    tokens, ends = random_rows(6, 32)
    rows = tokens, np.full(6, 32, np.int32), np.arange(6, dtype=np.uint32)
    run = functools.partial(corrupt, config=CorruptionConfig(), special=SPECIAL)
    expected = run(jax.random.key(0), *rows, ends)
    groups = [array.reshape(3, 2, *array.shape[1:]) for array in rows]
    batch = jax.vmap(lambda *rows: run(jax.random.key(0), *rows, ends))(*groups)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.reshape(b.shape), b), batch, expected)
    keys = jax.random.split(jax.random.key(1), 2)
    by_key = jax.jit(jax.vmap(lambda key: run(key, *rows, ends)))(keys)
    for i, key in enumerate(keys):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), by_key, run(key, *rows, ends))
