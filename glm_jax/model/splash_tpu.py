"""GLM's visibility rule with JAX's splash attention, a Pallas kernel for TPUs that never writes scores to HBM.

The kernel skips blocks by a mask that is known when it is compiled, and hides keys by segment ids that are not. Where
Part A ends differs from row to row, so the rule is written with every key twice:

    the first copy   seen by every query, if the key lies in Part A (by segment)
    the second copy  seen by queries that do not stand before it (by mask), if the key lies in Part B (by segment)

No query sees a key in both copies, and a query of Part A sees none of the second. Its blocks above the diagonal are
skipped, so 1.5 times the scores of the square are computed, none of which is stored.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from glm_jax.distributed.sharding import on_each_device

_LANES = 128  # widths of blocks are multiples of it
_LARGEST_BLOCK = 1024


def splash_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    prefix_lengths: Int[Array, "B"],
    *,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """As `attention.dense_attention` of all queries without dropout; softmax in float32, result in q's dtype.

    Rows and heads are split over the mesh as the rules for "batch" and "heads" say. `interpret` runs the kernel without
    a TPU, slowly.
    """
    split, rows = ["batch", None, "heads"], ["batch"]
    local = functools.partial(_local, interpret=interpret)
    return on_each_device(local, (split, split, split, rows), split)(q, k, v, prefix_lengths)


def _local(q, k, v, prefix_lengths, *, interpret):
    length, heads, width = q.shape[1:]
    padded = -(-length // _LANES) * _LANES

    def whole_blocks(x):  # [B T N H] -> [B N P H]
        return jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, padded - length), (0, 0)))

    q, k, v = whole_blocks(q * width**-0.5), whole_blocks(k), whole_blocks(v)
    kernel, segments = _kernel(heads, padded, interpret)
    in_a = jnp.arange(padded)[None, :] < prefix_lengths[:, None]
    hidden = jnp.concatenate([~in_a, in_a], axis=1).astype(jnp.int32)

    def row(q, k, v, hidden):
        twice = (jnp.concatenate([x, x], axis=1) for x in (k, v))
        return kernel(q, *twice, segment_ids=segments(q=jnp.zeros(padded, jnp.int32), kv=hidden))

    attended = jax.vmap(row)(q, k, v, hidden)
    return jnp.swapaxes(attended[:, :, :length], 1, 2).astype(q.dtype)


def _kernel(heads, padded, interpret):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    queries, keys = np.arange(padded)[:, None], np.arange(2 * padded)[None, :]
    mask = splash.NumpyMask((keys < padded) | (keys - padded <= queries))
    block = max(n for n in range(_LANES, min(padded, _LARGEST_BLOCK) + 1, _LANES) if padded % n == 0)
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
        block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
    )
    return kernel, splash.SegmentIds
