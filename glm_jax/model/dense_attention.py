"""Attention in plain XLA operations: dense (all scores at once), and chunked (a part of the scores at a time).

Both take queries [B Q N H] at positions `query_index` [#B Q], keys and values [B T N H], and the rule of
glm_jax/model/visibility.py as prefix lengths [B] and optional segment ids. They run on every device.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from glm_jax.distributed.sharding import shards
from glm_jax.model.dropout import keep_mask, mask_seeds
from glm_jax.model.gradients import custom_vjp
from glm_jax.model.ops import cpu_barrier, matmul_tn, precision
from glm_jax.model.visibility import visible_pairs

MASKED = -1e30  # large enough to vanish in the softmax, small enough that float32 arithmetic on it stays finite

_MIN_KEYS_TO_SPLIT = 256  # with fewer, two small matmuls cost more than the scores between A and B that they save

_QUERY_BLOCK = 384  # with 16 rows of 1,152 keys on a chip: 28 MB of scores; v5p and v6e hold 128


def dense_attention(
    q,
    k,
    v,
    prefix_lengths,
    query_index,
    dropout_rate,
    dropout_key,
    segment_ids=None,
    longest_prefix=None,
    num_trained=0,
):
    """Computes all scores at once, [B N Q T]. The reference for every other backend.

    The first `num_trained` keys are trained ones, which every query sees. No prefix is longer than `longest_prefix`.
    """
    mask = visible_pairs(prefix_lengths, query_index, segment_ids, q.shape[:2], k.shape[1], num_trained)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # one transposition instead of one in every matmul

    def attend(q, k, v, mask, key):
        seeds = mask_seeds(key) if key is not None and dropout_rate else None
        return _attend(q, k, v, mask, seeds, dropout_rate)

    if longest_prefix is None or k.shape[2] < _MIN_KEYS_TO_SPLIT:
        attended = attend(q, k, v, mask, dropout_key)
    else:  # positions that may lie in Part A see nothing after it
        n, keys = longest_prefix, (None, None) if dropout_key is None else jax.random.split(dropout_key)
        end = n + num_trained
        in_prefix = attend(q[:, :, :n], k[:, :, :end], v[:, :, :end], mask[:, :, :n, :end], keys[0])
        after = attend(q[:, :, n:], k, v, mask[:, :, n:], keys[1])
        attended = jnp.concatenate([in_prefix, after], axis=2)
    return jnp.swapaxes(attended, 1, 2)


def dense_probabilities(q, k, prefix_lengths, query_index, segment_ids=None, num_trained=0) -> Float[Array, "B N Q _"]:
    """The attention probabilities of `dense_attention` before dropout, float32."""
    mask = visible_pairs(prefix_lengths, query_index, segment_ids, q.shape[:2], k.shape[1], num_trained)
    scores = _contract("bqnh,bknh->bnqk", q, k, jnp.float32) * q.shape[-1] ** -0.5
    return jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1)


@functools.partial(custom_vjp, nondiff_argnums=(5,))
def _attend(q, k, v, mask, seeds, rate):
    """[B N Q H], [B N T H] twice, bool [B 1 Q T], uint32 [2] or None -> [B N Q H]."""
    return _attend_forward(q, k, v, mask, seeds, rate)[0]


# The softmax is not normalised: its denominator divides the results, which are T / H times smaller. The gradient needs
# no sum over products of probabilities and their gradients either: that sum is the product of result and gradient.


def _attend_forward(q, k, v, mask, seeds, rate):
    scores = _contract("bnqh,bnkh->bnqk", q, k, jnp.float32) * q.shape[-1] ** -0.5
    scores = jnp.where(mask, scores, MASKED)
    exp_scores = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    denominator = jnp.sum(exp_scores, axis=-1, keepdims=True) * (1.0 if seeds is None else 1.0 - rate)
    exp_scores = exp_scores.astype(q.dtype)
    out = _contract("bnqk,bnkh->bnqh", _drop(exp_scores, seeds, rate), v, jnp.float32)
    out = (out / denominator).astype(q.dtype)
    return out, (q, k, v, exp_scores, denominator, out, seeds)


def _attend_backward(rate, saved, d_out):
    q, k, v, exp_scores, denominator, out, seeds = saved
    d_out = d_out.astype(jnp.float32) / denominator
    # Without the barrier XLA's CPU backend computes the scores' gradients together with this, in a slower kernel.
    correction = cpu_barrier(jnp.sum(d_out * out, axis=-1, keepdims=True) * (1.0 if seeds is None else 1.0 - rate))
    d_out = d_out.astype(q.dtype)
    d_v = matmul_tn(_drop(exp_scores, seeds, rate), d_out, v.dtype)
    d_exp_scores = _drop(_contract("bnqh,bnkh->bnqk", d_out, v, jnp.float32), seeds, rate)
    d_scores = (exp_scores * (d_exp_scores - correction)).astype(q.dtype)
    scale = q.shape[-1] ** -0.5  # applied to the results, which are T / H times smaller
    d_q = _contract("bnqk,bnkh->bnqh", d_scores, k, jnp.float32) * scale
    d_k = matmul_tn(d_scores, q, jnp.float32) * scale
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _drop(x, seeds, rate):
    return x if seeds is None else jnp.where(keep_mask(seeds, rate, x.shape), x, jnp.zeros_like(x))


def _contract(axes, x, y, dtype):
    return jnp.einsum(axes, x, y, precision=precision(x), preferred_element_type=dtype)


def chunked_attention(
    q,
    k,
    v,
    prefix_lengths,
    query_index,
    dropout_rate,
    dropout_key,
    segment_ids=None,
    longest_prefix=None,
    num_trained=0,
):
    """As `dense_attention`, one chunk after another: one head of each group, and a block of queries.

    The scores of a chunk fit a TPU's on-chip memory, where XLA keeps them: they never reach HBM. The backward pass
    recomputes them. Every chunk reads all keys, whatever the longest prefix is.
    """
    groups = math.gcd(q.shape[2], shards("heads"))  # so that every device works on a head of its own
    queries = q.shape[1]
    blocks = -(-queries // _QUERY_BLOCK)
    block = -(-queries // blocks)
    steps = q.shape[2] // groups, blocks
    padding = (0, blocks * block - queries)  # queries that fill the last block; their results are dropped
    query_index = jnp.pad(jnp.broadcast_to(query_index, q.shape[:2]), ((0, 0), padding))
    q = jnp.pad(q, ((0, 0), padding, (0, 0), (0, 0)))

    def by_head(x):  # [B T N H] -> [N/groups B T groups H]; heads stay on the devices that hold them
        return jnp.moveaxis(x.reshape(*x.shape[:2], groups, -1, x.shape[-1]), 3, 0)

    def by_block(x):  # [B Q ...] -> [Q/block B block ...]
        return jnp.moveaxis(x.reshape(x.shape[0], -1, block, *x.shape[2:]), 1, 0)

    def head(part):
        q, k, v, keys = part

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def attend(part):
            q, index, key = part
            return dense_attention(
                q, k, v, prefix_lengths, index, dropout_rate, key, segment_ids, num_trained=num_trained
            )

        attended = jax.lax.map(attend, (by_block(q), by_block(query_index), keys))
        return jnp.moveaxis(attended, 0, 1).reshape(q.shape)

    keys = None if dropout_key is None else jax.random.split(dropout_key, steps)
    attended = jax.lax.map(head, (by_head(q), by_head(k), by_head(v), keys))
    return jnp.moveaxis(attended, 0, 3).reshape(q.shape)[:, :queries]
