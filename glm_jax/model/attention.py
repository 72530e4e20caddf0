"""Who sees whom in GLM, and the attention that obeys it.

Part A (the first `prefix_length` tokens) is read in both directions; Part B is written left to right and sees all of
Part A (Du et al. 2022, section 2.1). One integer a row says it, and segments where texts share a row: no masks.
"""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from glm_jax.distributed.accelerators import accelerator_of
from glm_jax.distributed.sharding import on_tpu, shards, traced_device
from glm_jax.model.dropout import keep_mask, mask_seeds
from glm_jax.model.ops import cpu_barrier, matmul_tn, precision

# Large enough to vanish in the softmax, small enough that float32 arithmetic on it stays finite.
_HIDDEN = -1e30

_FEWEST_KEYS_TO_SPLIT = 256  # with fewer, two small products cost more than the scores between A and B that they save

_MOST_KEYS_DENSE_ON_V5P = 1024  # with 1,152, GLM-10B's, the step holds 20.6 instead of 17.9 GB beside its state

_QUERY_BLOCK = 384  # with 16 rows of 1,152 keys on a chip: 28 MB of scores, of which v5p and v6e hold 128


def visible(
    prefix_lengths: Int[Any, "*#shape"],
    query_index: Int[Any, "*#shape"],
    key_index: Int[Any, "*#shape"],
    query_segment: Int[Any, "*#shape"] | None = None,
    key_segment: Int[Any, "*#shape"] | None = None,
) -> Bool[Any, "*#shape"]:
    """Whether the query at `query_index` sees the key at `key_index`: key_index < max(prefix_length, query_index + 1).

    The integer arrays broadcast against each other. A prefix of 0 is plain causal attention, a prefix of T sees
    everything. Where several texts, or several answers to one, share a row, segments tell them apart: a query sees its
    own segment, and segment 0, which belongs to all.
    """
    seen = key_index < jnp.maximum(prefix_lengths, query_index + 1)
    if query_segment is None:
        return seen
    return seen & ((query_segment == key_segment) | (key_segment == 0))


def attention(
    q: Float[Array, "B Q N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    prefix_lengths: Int[Array, "B"],
    *,
    query_index: Int[Array, "B Q"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    longest_prefix: int | None = None,
    backend: str = "auto",
    dropout_rate: float = 0.0,
    dropout_key: Any | None = None,
) -> Float[Array, "B Q N H"]:
    """softmax(q kᵀ / √H) v over the keys that each query sees; softmax in float32, result in q's dtype.

    `query_index` are the positions of the queries among the keys; without it query i stands at position i.
    `segment_ids` tell apart texts that share a row (see `visible`). If no prefix is longer than `longest_prefix`, known
    when this is compiled, positions before it get no scores with keys behind it. With a `dropout_key`, attention
    probabilities are dropped at `dropout_rate`.

    Raises ValueError as `check_backend`, and for queries and keys of different number without `query_index`.
    """
    rate = 0.0 if dropout_key is None else dropout_rate
    check_backend(backend, q.dtype, q.shape[-1], dropout_rate=rate, several_texts=segment_ids is not None)
    if query_index is None:
        if q.shape[1] != k.shape[1]:
            raise ValueError(
                f"{q.shape[1]} queries for {k.shape[1]} keys: pass query_index to say where among the keys they stand"
            )
        query_index = jnp.arange(q.shape[1], dtype=jnp.int32)[None, :]
        if longest_prefix is not None and not 0 < longest_prefix < k.shape[1]:
            longest_prefix = None
    else:
        longest_prefix = None  # says nothing of queries that stand anywhere
    attend = BACKENDS[backend]
    return attend(q, k, v, prefix_lengths, query_index, dropout_rate, dropout_key, segment_ids, longest_prefix)


def dense_attention(
    q, k, v, prefix_lengths, query_index, dropout_rate, dropout_key, segment_ids=None, longest_prefix=None
):
    """The rule written out: all scores at once, [B N Q T]. The reference for every other backend."""
    seen = _visible_pairs(prefix_lengths, query_index, segment_ids, q.shape[:2], k.shape[1])
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # one transposition instead of one in every product

    def attend(q, k, v, seen, key):
        return _attend(q, k, v, seen, mask_seeds(key) if key is not None and dropout_rate else None, dropout_rate)

    if longest_prefix is None or k.shape[2] < _FEWEST_KEYS_TO_SPLIT:
        attended = attend(q, k, v, seen, dropout_key)
    else:  # positions that may lie in Part A see nothing behind it
        n, keys = longest_prefix, (None, None) if dropout_key is None else jax.random.split(dropout_key)
        before = attend(q[:, :, :n], k[:, :, :n], v[:, :, :n], seen[:, :, :n, :n], keys[0])
        behind = attend(q[:, :, n:], k, v, seen[:, :, n:], keys[1])
        attended = jnp.concatenate([before, behind], axis=2)
    return jnp.swapaxes(attended, 1, 2)


def _visible_pairs(prefix_lengths, query_index, segment_ids, queries_shape, keys):
    """`visible` for every pair: bool [B 1 Q T]."""
    key_index = jnp.arange(keys, dtype=jnp.int32)
    segments = ()
    if segment_ids is not None:
        asking = jnp.broadcast_to(query_index, queries_shape)
        segments = jnp.take_along_axis(segment_ids, asking, axis=1)[:, :, None], segment_ids[:, None, :]
    seen = visible(prefix_lengths[:, None, None], query_index[:, :, None], key_index[None, None, :], *segments)
    return seen[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q, k, v, seen, seeds, rate):
    """[B N Q H], [B N T H] twice, bool [B 1 Q T], uint32 [2] or None -> [B N Q H]."""
    return _attend_forward(q, k, v, seen, seeds, rate)[0]


# The softmax is never divided: its sums divide the results, which are T / H times smaller. The gradient needs no sum
# over the products of probabilities and their gradients either: that is the product of result and gradient.


def _attend_forward(q, k, v, seen, seeds, rate):
    scores = _contract("bnqh,bnkh->bnqk", q, k, jnp.float32) * q.shape[-1] ** -0.5
    scores = jnp.where(seen, scores, _HIDDEN)
    powers = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    sums = jnp.sum(powers, axis=-1, keepdims=True) * (1.0 if seeds is None else 1.0 - rate)
    powers = powers.astype(q.dtype)
    out = (_contract("bnqk,bnkh->bnqh", _drop(powers, seeds, rate), v, jnp.float32) / sums).astype(q.dtype)
    return out, (q, k, v, powers, sums, out, seeds)


def _attend_backward(rate, saved, d_out):
    q, k, v, powers, sums, out, seeds = saved
    d_out = d_out.astype(jnp.float32) / sums
    # Left to itself, XLA's CPU backend computes scores' gradients together with this, in a slower kernel.
    correction = cpu_barrier(jnp.sum(d_out * out, axis=-1, keepdims=True) * (1.0 if seeds is None else 1.0 - rate))
    d_out = d_out.astype(q.dtype)
    d_v = matmul_tn(_drop(powers, seeds, rate), d_out, v.dtype)
    d_powers = _drop(_contract("bnqh,bnkh->bnqk", d_out, v, jnp.float32), seeds, rate)
    d_scores = (powers * (d_powers - correction)).astype(q.dtype)
    scale = q.shape[-1] ** -0.5  # of the results, which are T / H times smaller
    d_q = _contract("bnqk,bnkh->bnqh", d_scores, k, jnp.float32) * scale
    d_k = matmul_tn(d_scores, q, jnp.float32) * scale
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _drop(x, seeds, rate):
    return x if seeds is None else jnp.where(keep_mask(seeds, rate, x.shape), x, jnp.zeros_like(x))


def _contract(axes, x, y, dtype):
    return jnp.einsum(axes, x, y, precision=precision(x), preferred_element_type=dtype)


def chunked_attention(
    q, k, v, prefix_lengths, query_index, dropout_rate, dropout_key, segment_ids=None, longest_prefix=None
):
    """As `dense_attention`, in small parts one after another: one head of each group, and a block of queries.

    The scores of a part fit a TPU's fast memory, where XLA then keeps them: they never travel to HBM. The backward
    pass computes them again. All parts see all keys, whatever the longest prefix is.
    """
    groups = math.gcd(q.shape[2], shards("heads"))  # so that every device works on a head of its own
    queries = q.shape[1]
    blocks = -(-queries // _QUERY_BLOCK)
    block = -(-queries // blocks)
    steps = q.shape[2] // groups, blocks
    behind = (0, blocks * block - queries)  # queries that fill the last block; their results are dropped
    query_index = jnp.pad(jnp.broadcast_to(query_index, q.shape[:2]), ((0, 0), behind))
    q = jnp.pad(q, ((0, 0), behind, (0, 0), (0, 0)))

    def by_head(x):  # [B T N H] -> [N/groups B T groups H]; heads stay on the devices that hold them
        return jnp.moveaxis(x.reshape(*x.shape[:2], groups, -1, x.shape[-1]), 3, 0)

    def by_block(x):  # [B Q ...] -> [Q/block B block ...]
        return jnp.moveaxis(x.reshape(x.shape[0], -1, block, *x.shape[2:]), 1, 0)

    def head(part):
        q, k, v, keys = part

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def attend(part):
            q, index, key = part
            return dense_attention(q, k, v, prefix_lengths, index, dropout_rate, key, segment_ids)

        attended = jax.lax.map(attend, (by_block(q), by_block(query_index), keys))
        return jnp.moveaxis(attended, 0, 1).reshape(q.shape)

    keys = None if dropout_key is None else jax.random.split(dropout_key, steps)
    attended = jax.lax.map(head, (by_head(q), by_head(k), by_head(v), keys))
    return jnp.moveaxis(attended, 0, 3).reshape(q.shape)[:, :queries]


def cudnn_attention(
    q, k, v, prefix_lengths, query_index, dropout_rate, dropout_key, segment_ids=None, longest_prefix=None
):
    """As `dense_attention`, by cuDNN's fused kernels for NVIDIA GPUs: no scores in memory, but the rule as a mask."""
    queries = q.shape[1]
    seen = _visible_pairs(prefix_lengths, query_index, segment_ids, q.shape[:2], k.shape[1])
    behind, behind_keys = -queries % 8, -k.shape[1] % 8  # its gradients want even numbers, its loads whole vectors
    q = jnp.pad(q, ((0, 0), (0, behind), (0, 0), (0, 0)))
    k, v = (jnp.pad(x, ((0, 0), (0, behind_keys), (0, 0), (0, 0))) for x in (k, v))
    seen = jnp.pad(seen, ((0, 0), (0, 0), (0, behind), (0, behind_keys)))
    return jax.nn.dot_product_attention(q, k, v, mask=seen, implementation="cudnn")[:, :queries]


def _flash(q, k, v, prefix_lengths, query_index, dropout_rate, dropout_key, segment_ids=None, longest_prefix=None):
    """The kernel for Hopper GPUs; queries at some positions only (the last layer's) are dense."""
    from glm_jax.model.flash_gpu import flash_attention  # Pallas is slow to import

    if q.shape[1] != k.shape[1]:  # a row has fewer targets than columns
        return dense_attention(q, k, v, prefix_lengths, query_index, dropout_rate, dropout_key, segment_ids)
    return flash_attention(
        q, k, v, prefix_lengths, segment_ids=segment_ids, dropout_rate=dropout_rate, dropout_key=dropout_key
    )


def _splash(q, k, v, prefix_lengths, query_index, dropout_rate, dropout_key, segment_ids=None, longest_prefix=None):
    """JAX's kernel for TPUs; queries at some positions only (the last layer's), and those after the longest prefix,
    are dense.
    """
    from glm_jax.model.splash_tpu import splash_attention

    def dense(q, index):
        return dense_attention(q, k, v, prefix_lengths, index, 0.0, None)

    if q.shape[1] != k.shape[1]:
        return dense(q, query_index)
    if longest_prefix is None:
        return splash_attention(q, k, v, prefix_lengths)
    n = longest_prefix
    in_prefix = splash_attention(q[:, :n], k[:, :n], v[:, :n], prefix_lengths)
    return jnp.concatenate([in_prefix, dense(q[:, n:], query_index[:, n:])], axis=1)


def _auto(q, k, *rest):
    # On TPUs scores that travel to HBM limit the step; elsewhere small parts one after another only cost time. On v5p
    # XLA keeps too little of the parts in fast memory, and dense moves less as long as its scores have room.
    chip = accelerator_of(traced_device())
    on_v5p = chip is not None and chip.name == "v5p"
    dense_is_better = not on_tpu() or (on_v5p and k.shape[1] <= _MOST_KEYS_DENSE_ON_V5P)
    return (dense_attention if dense_is_better else chunked_attention)(q, k, *rest)


BACKENDS = {
    "auto": _auto,
    "dense": dense_attention,
    "chunked": chunked_attention,
    "cudnn": cudnn_attention,
    "flash": _flash,
    "splash": _splash,
}


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """What a backend needs that does not run everywhere."""

    device: str
    kinds: str  # pattern of the device's name
    widths: tuple[int, ...] = ()  # of a head; none named: any
    dtypes: tuple[str, ...] = ("bfloat16", "float16")
    instead_of_dropout: str | None = None  # backend to take for what it cannot do; None: it can
    instead_of_segments: str | None = None


_KERNELS = {
    "cudnn": _Kernel("an NVIDIA GPU", "NVIDIA", widths=tuple(range(8, 129, 8)), instead_of_dropout="flash"),
    "flash": _Kernel("a Hopper GPU", r"\bG?H(20|100|200|800)\b", widths=(64,)),
    "splash": _Kernel(
        "a TPU", "^TPU", dtypes=("bfloat16", "float32"), instead_of_dropout="chunked", instead_of_segments="chunked"
    ),
}
PORTABLE = tuple(sorted(set(BACKENDS) - set(_KERNELS)))  # backends that run on any device


def check_backend_name(backend: str) -> None:
    """Raises ValueError for a name that is no backend."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}; known: {', '.join(sorted(BACKENDS))}")


def check_backend(
    backend: str, dtype: Any, head_width: int, *, dropout_rate: float = 0.0, several_texts: bool = False
) -> None:
    """Raises ValueError for an unknown backend, and for one that cannot do this on the device that is traced for.

    `several_texts`: that rows may hold several, told apart by segments.
    """
    check_backend_name(backend)
    if backend not in _KERNELS:
        return
    kernel, device, dtype = _KERNELS[backend], traced_device().device_kind, jnp.dtype(dtype).name
    this = f"attention backend {backend!r}"
    if not re.search(kernel.kinds, device):
        raise ValueError(f"{this} needs {kernel.device}, not {device!r}: choose 'auto'")
    if dtype not in kernel.dtypes:
        raise ValueError(f"{this} needs model.dtype {' or '.join(map(repr, kernel.dtypes))}, not {dtype!r}")
    if kernel.widths and head_width not in kernel.widths:
        known = ", ".join(map(str, kernel.widths))
        raise ValueError(f"{this} needs heads of {known} columns, not {head_width}: choose 'auto'")
    if dropout_rate and kernel.instead_of_dropout:
        raise ValueError(
            f"{this} drops no attention: set attention_dropout to 0, not {dropout_rate}, or choose attention_backend "
            f"{kernel.instead_of_dropout!r}"
        )
    if several_texts and kernel.instead_of_segments:
        raise ValueError(
            f"{this} knows one text a row: set corruption.short_sequence_prob to 0, or choose attention_backend "
            f"{kernel.instead_of_segments!r}"
        )


@struct.dataclass
class KVCache:
    """What one layer remembers while answers are written: keys and values, laid out as their products read them.

    The context is shared by the W answers of a row (beams, or samples); every answer has columns of its own.
    """

    context_keys: Any  # compute dtype [B N H C]
    context_values: Any  # compute dtype [B N C H]
    answer_keys: Any  # compute dtype [B W N H G]
    answer_values: Any  # compute dtype [B W N G H]


def cached_attention(
    q: Float[Array, "B W N H"],
    k: Float[Array, "B W N H"],
    v: Float[Array, "B W N H"],
    cache: KVCache,
    context_lengths: Int[Array, "B"],
    answer_length: Int[Array, ""],
) -> Float[Array, "B W N H"]:
    """Attention of the newest token of each answer: to the context, to the earlier tokens of its answer, to itself.

    `k` and `v` are the newest token's own and not yet in the cache, of which `answer_length` columns count. Equal to
    `attention` over context and answer in one sequence, up to rounding.
    """

    def product(x, cached, dtype):  # [… M K] · [… K N]
        batch = tuple(range(cached.ndim - 2))
        axes = (((x.ndim - 1,), (cached.ndim - 2,)), (batch, batch))
        return jax.lax.dot_general(x, cached, axes, precision=precision(x), preferred_element_type=dtype)

    turned = jnp.swapaxes(q, 1, 2)  # the answers of a row read the same context: one product for all
    to_context = jnp.swapaxes(product(turned, cache.context_keys, jnp.float32), 1, 2)
    to_answer = product(q[..., None, :], cache.answer_keys, jnp.float32)[..., 0, :]
    to_itself = jnp.sum(q * k, axis=-1, keepdims=True, dtype=jnp.float32)

    context, answer = to_context.shape[-1], to_answer.shape[-1]
    in_context = jnp.arange(context)[None] < context_lengths[:, None]
    in_answer = jnp.arange(answer) < answer_length
    to_context = jnp.where(in_context[:, None, None], to_context, _HIDDEN)
    to_answer = jnp.where(in_answer[None, None, None], to_answer, _HIDDEN)
    scores = jnp.concatenate([to_context, to_answer, to_itself], axis=-1) * q.shape[-1] ** -0.5
    over_context, over_answer, over_itself = jnp.split(
        jax.nn.softmax(scores, axis=-1).astype(q.dtype), [context, context + answer], axis=-1
    )
    from_context = product(jnp.swapaxes(over_context, 1, 2), cache.context_values, q.dtype)
    from_answer = product(over_answer[..., None, :], cache.answer_values, q.dtype)[..., 0, :]
    return jnp.swapaxes(from_context, 1, 2) + from_answer + over_itself * v
