"""Attention of decoding: the newest token of each answer over cached keys and values."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from glm_jax.model.dense_attention import MASKED
from glm_jax.model.ops import precision


@struct.dataclass
class KVCache:
    """Keys and values of one layer, laid out as the matmuls of `cached_attention` read them.

    The W answers of a row (beams, or samples) share the context; every answer has columns of its own. The cache of a
    whole model has a leading axis of layers in each array, or a tuple of one array a layer.
    """

    context_keys: Any  # compute dtype [B N H C]
    context_values: Any  # compute dtype [B N C H]
    answer_keys: Any  # compute dtype [B W N H G]
    answer_values: Any  # compute dtype [B W N G H]
    answer_length: Any  # int32 [], how many columns of the answers are filled; the same for all layers


def context_layout(
    k: Float[Array, "B C N H"], v: Float[Array, "B C N H"]
) -> tuple[Float[Array, "B N H C"], Float[Array, "B N C H"]]:
    """Keys and values of a context as `KVCache` holds them."""
    keys = nn.with_logical_constraint(jnp.transpose(k, (0, 2, 3, 1)), ("batch", "heads", "head_dim", None))
    values = nn.with_logical_constraint(jnp.swapaxes(v, 1, 2), ("batch", "heads", None, "head_dim"))
    return keys, values


def cached_attention(
    q: Float[Array, "B W N H"],
    k: Float[Array, "B W N H"],
    v: Float[Array, "B W N H"],
    cache: KVCache,
    context_lengths: Int[Array, "B"],
) -> Float[Array, "B W N H"]:
    """The newest token of each answer attends to the context, to the earlier tokens of its answer, and to itself.

    `k` and `v` belong to the newest token and are not yet in the cache. Equal to `attention` over context and answer in
    one sequence, up to rounding.
    """

    def matmul(x, cached, dtype):  # [… M K] · [… K N]
        batch = tuple(range(cached.ndim - 2))
        axes = (((x.ndim - 1,), (cached.ndim - 2,)), (batch, batch))
        return jax.lax.dot_general(x, cached, axes, precision=precision(x), preferred_element_type=dtype)

    transposed = jnp.swapaxes(q, 1, 2)  # the answers of a row read the same context: one matmul for all
    to_context = jnp.swapaxes(matmul(transposed, cache.context_keys, jnp.float32), 1, 2)
    to_answer = matmul(q[..., None, :], cache.answer_keys, jnp.float32)[..., 0, :]
    to_itself = jnp.sum(q * k, axis=-1, keepdims=True, dtype=jnp.float32)

    context, answer = to_context.shape[-1], to_answer.shape[-1]
    in_context = jnp.arange(context)[None] < context_lengths[:, None]
    in_answer = jnp.arange(answer) < cache.answer_length
    to_context = jnp.where(in_context[:, None, None], to_context, MASKED)
    to_answer = jnp.where(in_answer[None, None, None], to_answer, MASKED)
    scores = jnp.concatenate([to_context, to_answer, to_itself], axis=-1) * q.shape[-1] ** -0.5
    over_context, over_answer, over_itself = jnp.split(
        jax.nn.softmax(scores, axis=-1).astype(q.dtype), [context, context + answer], axis=-1
    )
    from_context = matmul(jnp.swapaxes(over_context, 1, 2), cache.context_values, q.dtype)
    from_answer = matmul(over_answer[..., None, :], cache.answer_values, q.dtype)[..., 0, :]
    return jnp.swapaxes(from_context, 1, 2) + from_answer + over_itself * v
