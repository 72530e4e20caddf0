"""The kernel for Hopper GPUs obeys the visibility rule, forward and backward: interpreted, for there is no GPU here.

What only a GPU's compiler can say is asked in test_gpu_compiler.py.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.interpreters import mlir
from jax._src.pallas.mosaic_gpu import core as mosaic_core
from jax._src.pallas.mosaic_gpu import primitives as mosaic_primitives
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from glm_jax.distributed import sharding
from glm_jax.distributed.mesh import make_mesh
from glm_jax.model import flash_gpu
from glm_jax.model.attention import attention
from glm_jax.model.dense_attention import dense_attention
from glm_jax.model.flash_gpu import flash_attention
from glm_jax.model.visibility import visible

INTERPRET = InterpretGPUParams()
if jax.__version_info__ < (0, 11):  # whose interpreter lacks two operations; there both do nothing
    mlir.register_lowering(mosaic_core.layout_cast_p, lambda context, x, **_: [x], platform="cpu")
    mlir.register_lowering(mosaic_primitives.commit_smem_p, lambda context, **_: [], platform="cpu")


def _inputs(batch, length, heads=1):
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, (batch, length, heads, 64), jnp.bfloat16) for key in keys]


def _on(monkeypatch, kind):
    monkeypatch.setattr("glm_jax.model.attention.traced_device", lambda: types.SimpleNamespace(device_kind=kind))


@pytest.mark.parametrize(
    ("length", "prefixes", "heads", "segments", "rate"),
    [
        (150, [70, 0], 2, False, 0.0),
        (128, [128, 1], 1, False, 0.0),
        (150, [64, 149], 1, True, 0.0),
        (150, [70, 150], 2, False, 0.1),
        (100, [65, 30], 1, True, 0.5),
    ],
)
@pytest.mark.thorough
def test_equals_dense_forward_and_backward(length, prefixes, heads, segments, rate):
    """To the precision of bfloat16 factors; with dropout, the very mask of dense attention."""
    *qkv, d_out = _inputs(2, length, heads)
    prefixes = jnp.array(prefixes, jnp.int32)
    ids = None
    if segments:  # two texts; one text after what belongs to all
        at = jnp.arange(length)
        ids = jnp.stack([1 + (at >= 90), (at >= 40).astype(jnp.int32)]).astype(jnp.int32)
    key = jax.random.key(3) if rate else None

    def kernel(q, k, v):
        options = {"segment_ids": ids, "dropout_rate": rate, "dropout_key": key}
        return flash_attention(q, k, v, prefixes, interpret=INTERPRET, **options)

    def dense(q, k, v):
        return dense_attention(q, k, v, prefixes, jnp.arange(length)[None, :], rate, key, ids)

    out, pull = jax.vjp(kernel, *qkv)
    exact = [x.astype(jnp.float32) for x in (*qkv, d_out)]
    expected, pull_exact = jax.vjp(dense, *exact[:3])
    assert out.dtype == jnp.bfloat16
    for actual, desired in zip((out, *pull(d_out)), (expected, *pull_exact(exact[3])), strict=True):
        np.testing.assert_allclose(actual.astype(jnp.float32), desired, atol=0.006 * np.abs(desired).max())


def test_only_visible_tiles_are_visited():
    """Skipped tiles hold no visible pair, and tiles without a mask hold no masked one."""
    tile, tiles = 64, 4
    at = np.arange(tile * tiles)
    for prefix in (0, 1, 63, 64, 65, 128, 190, 255, 256):
        mask = np.asarray(visible(np.int32(prefix), at[:, None], at[None, :]))
        blocks = mask.reshape(tiles, tile, tiles, tile).swapaxes(1, 2)
        any_seen, all_seen = blocks.any((2, 3)), blocks.all((2, 3))
        for own in range(tiles):
            first = jnp.int32(own * tile)
            for bounds, some, whole in (
                (flash_gpu._from_queries, any_seen[own], all_seen[own]),
                (flash_gpu._from_keys, any_seen[:, own], all_seen[:, own]),
            ):
                begin, middle, end, masked_first = (int(x) for x in bounds(jnp.int32(prefix), first, tiles))
                np.testing.assert_array_equal(np.flatnonzero(some), np.arange(begin, end))
                unmasked = np.arange(middle, end) if masked_first else np.arange(begin, middle)
                np.testing.assert_array_equal(np.flatnonzero(whole), unmasked)


@pytest.mark.thorough
def test_a_mesh_changes_nothing():
    q, k, v, _ = _inputs(2, 70, heads=2)
    prefixes, options = jnp.array([40, 70]), {"dropout_rate": 0.5, "dropout_key": jax.random.key(1)}
    alone = flash_attention(q, k, v, prefixes, interpret=INTERPRET, **options)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh), sharding.logical_axis_rules():
        split = jax.jit(lambda *a: flash_attention(*a, interpret=INTERPRET, **options))(q, k, v, prefixes)
    np.testing.assert_array_equal(split.astype(jnp.float32), alone.astype(jnp.float32))


def test_what_it_cannot_do_is_refused(monkeypatch):
    q, k, v, _ = _inputs(1, 64)

    def attend(*qkv):
        return attention(*qkv, jnp.array([40]), backend="flash")

    with pytest.raises(ValueError, match="needs a Hopper GPU, not 'cpu': choose 'auto'"):
        attend(q, k, v)
    for kind in ("NVIDIA A100-SXM4-80GB", "NVIDIA B200", "TPU v5"):
        _on(monkeypatch, kind)
        with pytest.raises(ValueError, match=f"not '{kind}'"):
            attend(q, k, v)
    _on(monkeypatch, "NVIDIA H100 80GB HBM3")
    with pytest.raises(ValueError, match=r"needs model.dtype 'bfloat16' or 'float16', not 'float32'"):
        attend(*(x.astype(jnp.float32) for x in (q, k, v)))
    with pytest.raises(ValueError, match="heads of 64 columns, not 32"):
        attend(q[..., :32], k[..., :32], v[..., :32])


def test_queries_at_targets_are_dense(monkeypatch):
    _on(monkeypatch, "NVIDIA H200")
    q, k, v, _ = _inputs(2, 64)
    prefixes, index = jnp.array([40, 60]), jnp.array([[40, 41, 63], [60, 61, 62]])
    chosen = jnp.take_along_axis(q, index[:, :, None, None], axis=1)
    actual = attention(chosen, k, v, prefixes, query_index=index, backend="flash")
    desired = dense_attention(chosen, k, v, prefixes, index, 0.0, None)
    np.testing.assert_array_equal(actual.astype(jnp.float32), desired.astype(jnp.float32))


def test_all_queries_take_the_kernel(monkeypatch):
    _on(monkeypatch, "NVIDIA GH200 480GB")
    q, k, v, _ = _inputs(1, 70)
    options = {"backend": "flash", "longest_prefix": 64, "dropout_rate": 0.5, "dropout_key": jax.random.key(2)}
    calls = []

    def stand_in(q, k, v, prefixes, **given):
        calls.append(given)
        return q

    monkeypatch.setattr("glm_jax.model.flash_gpu.flash_attention", stand_in)
    attention(q, k, v, jnp.array([40]), **options)
    (given,) = calls
    assert given == {"segment_ids": None, "dropout_rate": 0.5, "dropout_key": options["dropout_key"]}


def test_the_kernel_is_lowered_for_a_hopper_gpu():
    """Pallas finds registers and memory for every value; needs no GPU."""
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)
    shape = jax.ShapeDtypeStruct((2, 150, 2, 64), jnp.bfloat16)

    def gradients(q, k, v, prefixes, segments):
        def loss(q, k, v):
            options = {"dropout_rate": 0.1, "dropout_key": jax.random.key(0)}
            return flash_attention(q, k, v, prefixes, segment_ids=segments, **options).astype(jnp.float32).sum()

        return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

    integers = jax.ShapeDtypeStruct((2,), jnp.int32), jax.ShapeDtypeStruct((2, 150), jnp.int32)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(gradients).trace(shape, shape, shape, *integers)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @mosaic_gpu") == 3
