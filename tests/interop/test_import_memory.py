"""Importing needs little more memory than the parameters that it returns."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from glm_jax.interop import megatron, param_mapping
from glm_jax.interop.tensors import LazyTensor
from glm_jax.model.config import GLMConfig
from tests.helpers.paths import ROOT

MOST = 1.3

MEASURE = """
import re, sys
import jax
from glm_jax import interop

def memory(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

interop.from_pretrained(sys.argv[2], num_heads=int(sys.argv[3]))  # what compiling and the libraries need
before = memory("VmRSS")
loaded = interop.from_pretrained(sys.argv[1], num_heads=int(sys.argv[3]), param_dtype=sys.argv[4])
size = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
print((memory("VmHWM") - before) / size)
"""


def write(folder, config, dtype, shards):
    """A checkpoint of the original whose weights are made as they are written."""
    rng = np.random.default_rng(0)

    def tensor(entry):
        draw = lambda: rng.standard_normal(entry.shape, np.float32).astype(dtype)  # noqa: E731
        array = draw() if shards > 1 else None  # shards are cut from the same draw
        return LazyTensor(entry.shape, np.dtype(dtype), draw if array is None else lambda: array)

    folder.mkdir()
    megatron.write_folder(folder, {entry.key: tensor(entry) for entry in param_mapping.entries(config)}, shards)


def measure(tmp_path, config, dtype, shards=1, param_dtype="float32"):
    small = GLMConfig(vocab_size=64, num_layers=2, hidden_size=config.num_heads * 4, num_heads=config.num_heads,
                      max_position_embeddings=8)  # fmt: skip
    write(tmp_path / "small", small, dtype, 1)
    write(tmp_path / "model", config, dtype, shards)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "model", tmp_path / "small", str(config.num_heads), param_dtype],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout)


@pytest.mark.thorough
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
@pytest.mark.parametrize(("dtype", "shards"), [("float16", 2), ("float32", 1)])
def test_peak_memory_of_a_deep_model(tmp_path, dtype, shards):
    config = GLMConfig(vocab_size=30592, num_layers=24, hidden_size=384, num_heads=6, max_position_embeddings=512)
    assert measure(tmp_path, config, dtype, shards) < MOST


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "param_dtype"), [("float32", "float32"), ("float16", "float32"), ("float32", "bfloat16")]
)
def test_peak_memory_of_glm_large(tmp_path, dtype, param_dtype):
    ratio = measure(tmp_path, GLMConfig.named("large"), dtype, param_dtype=param_dtype)
    print(f"{dtype} file, {param_dtype} parameters: peak {ratio:.3f} times the parameters")
    assert ratio < MOST
