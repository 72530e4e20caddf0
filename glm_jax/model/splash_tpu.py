"""GLM's mask with JAX's splash attention, a Pallas kernel for TPUs that never writes scores to HBM.

The kernel skips blocks by a static mask, and masks keys by segment ids at run time. The length of Part A differs from
row to row, so the rule is expressed with two copies of every key:

    first copy   visible to every query, if the key is in Part A (by segment)
    second copy  visible to queries at its position or after (by mask), if the key is in Part B (by segment)

No query sees both copies of a key, and a query of Part A sees none of the second. The second copy's blocks above the
diagonal are skipped, so 1.5 times the T×T scores are computed, and none is stored.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from glm_jax.distributed.sharding import on_each_device

_BLOCK_MULTIPLE = 128  # block sizes are multiples of it: a TPU vector has 128 lanes
_LARGEST_BLOCK = 1024


def splash_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    prefix_lengths: Int[Array, "B"],
    *,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """As `dense_attention` of all queries, without dropout; softmax in float32, result in q's dtype.

    Rows and heads are split over the mesh as the rules for "batch" and "heads" say. `interpret` runs the kernel without
    a TPU, slowly.
    """
    split, rows = ["batch", None, "heads"], ["batch"]
    local = functools.partial(_local, interpret=interpret)
    return on_each_device(local, (split, split, split, rows), split)(q, k, v, prefix_lengths)


def _local(q, k, v, prefix_lengths, *, interpret):
    length, heads, width = q.shape[1:]
    padded = -(-length // _BLOCK_MULTIPLE) * _BLOCK_MULTIPLE

    def whole_blocks(x):  # [B T N H] -> [B N P H]
        return jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, padded - length), (0, 0)))

    q, k, v = whole_blocks(q * width**-0.5), whole_blocks(k), whole_blocks(v)
    kernel, segments = _kernel(heads, padded, interpret)
    in_a = jnp.arange(padded)[None, :] < prefix_lengths[:, None]
    masked = jnp.concatenate([~in_a, in_a], axis=1).astype(jnp.int32)

    def row(q, k, v, masked):
        twice = (jnp.concatenate([x, x], axis=1) for x in (k, v))
        return kernel(q, *twice, segment_ids=segments(q=jnp.zeros(padded, jnp.int32), kv=masked))

    attended = jax.vmap(row)(q, k, v, masked)
    return jnp.swapaxes(attended[:, :, :length], 1, 2).astype(q.dtype)


def _kernel(heads, padded, interpret):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    queries, keys = np.arange(padded)[:, None], np.arange(2 * padded)[None, :]
    mask = splash.NumpyMask((keys < padded) | (keys - padded <= queries))
    block = max(n for n in range(_BLOCK_MULTIPLE, min(padded, _LARGEST_BLOCK) + 1, _BLOCK_MULTIPLE) if padded % n == 0)
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
        block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
    )
    return kernel, splash.SegmentIds
