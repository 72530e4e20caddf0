"""The kernel for Hopper GPUs through XLA's and NVIDIA's compilers, for an H200 that is not there.

Needs JAX's plugin for CUDA (pip install 'jax[cuda12]', of the version that is installed); skipped without.
"""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

_PLUGINS = [name for name in ("jax_cuda12_plugin", "jax_cuda13_plugin") if importlib.util.find_spec(name)]

# What XLA would ask the device. Sources: CUDA C++ Programming Guide, compute capability 9.0; H200 datasheet.
_PROGRAM = '''
import jax, jax.numpy as jnp
from jax.experimental import topologies
from glm_jax.model.flash_gpu import flash_attention

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 4800000000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 141000000000 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H200"
"""
device = topologies.get_topology_desc(platform="cuda", target_config=H200, topology="1x1x1").devices[0]
mesh = jax.sharding.Mesh([device], ("data",))
here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
shape = lambda dtype, *sizes: jax.ShapeDtypeStruct(sizes, dtype, sharding=here)
qkv, ids = [shape(jnp.bfloat16, 16, 568, 16, 64)] * 3, shape(jnp.int32, 16, 568)

def gradients(q, k, v, prefixes, segments, rate):
    def loss(q, k, v):
        key = jax.random.key(0) if rate else None
        return flash_attention(
            q, k, v, prefixes, segment_ids=segments, dropout_rate=rate, dropout_key=key
        ).astype(jnp.float32).sum()
    return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

with jax.set_mesh(mesh):
    for segments, rate in ((None, 0.0), (None, 0.1), (ids, 0.1)):
        step = jax.jit(gradients, static_argnums=5)
        compiled = step.lower(*qkv, shape(jnp.int32, 16), segments, rate).compile()
        print("temporaries:", compiled.memory_analysis().temp_size_in_bytes)
'''


@pytest.mark.slow
@pytest.mark.skipif(not _PLUGINS, reason="needs JAX's plugin for CUDA: pip install 'jax[cuda12]'")
def test_the_kernel_fits_an_h200():
    """Three kernels (forward, gradients of queries, of keys and values) in three variants: none spills registers, two
    warpgroups or more share an SM, and no scores [16 16 568 568] are among the temporaries."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, timeout=600,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "MOSAIC_GPU_DUMP_PTXAS": "1"},
    )  # fmt: skip
    printed = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, printed[-3000:]
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill stores", printed)]
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", printed)]
    assert len(spilled) == len(registers) == 9
    assert not any(spilled)
    assert all(128 * n * 2 <= 65536 for n in registers), registers
    temporaries = [int(n) for n in re.findall(r"temporaries: (\d+)", printed)]
    assert len(temporaries) == 3
    assert all(n < 16 * 16 * 568 * 568 * 2 for n in temporaries), temporaries
