"""The two forward passes of decoding: the context once, then one token of every answer at a time.

A context is Part A, and whatever of Part B is already written. Its keys and values are computed once (`encode`) and
shared by the W answers of a row (beams, or samples). `forward` then takes the newest token of each answer. Both run the
network of glm_jax/model/transformer.py; here are the layout of the cache and of the parameters.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from glm_jax.model.adapters import prefix_length
from glm_jax.model.cached_attention import KVCache
from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import GLM


@struct.dataclass
class PrefillCache:
    """Encoded contexts: keys and values of every layer, and how many columns of each row are real."""

    keys: Any  # [Y B N H C], or a tuple of Y arrays [B N H C]
    values: Any  # [Y B N C H], or a tuple of Y arrays [B N C H]
    lengths: Any  # int32 [B]


def prepare(params: Any, *, config: GLMConfig, unrolled: bool) -> Any:
    """Parameters as decoding reads them: matrices in the compute dtype, so that they are cast once and not per token.

    Leaves that already have that dtype are not copied. `unrolled` is for XLA's CPU backend. It unstacks the layers,
    because that backend copies a layer that it takes from a stack, which costs more than the layer's matmuls. It also
    adds a transposed copy of the vocabulary under "head", which makes the head of several rows twice as fast.
    """
    dtype = jnp.dtype(config.dtype)

    def cast(path, leaf):
        is_norm = any("layernorm" in str(key) for key in path)  # its arithmetic is float32
        return leaf if is_norm or leaf.dtype == dtype else leaf.astype(dtype)

    params = jax.tree_util.tree_map_with_path(cast, params)
    if not unrolled:
        return params
    unstacked = _unstack(params)
    return {name: tree for name, tree in params.items() if name != "first_layers"} | unstacked


def with_computed_prefix(model: GLM, params: Any) -> Any:
    """`params` with the keys and values of a prefix that an MLP or virtual tokens give, computed once."""
    if "prefix" not in params or "keys" in params["prefix"]:
        return params
    return {**params, "prefix": _computed_prefix(model, params)}


@functools.partial(jax.jit, static_argnums=0)
def _computed_prefix(model, params):
    keys, values = model.apply({"params": params}, method="trained_prefix")
    return {"keys": keys[:, 0], "values": values[:, 0]}


@jax.jit
def _unstack(params):
    layers = []
    for name in ("first_layers", "layers"):
        leaves = jax.tree.leaves(params.get(name))
        layers += [jax.tree.map(lambda a, i=i: a[i], params[name]) for i in range(leaves[0].shape[0] if leaves else 0)]
    return {"layers": tuple(layers), "head": params["word_embeddings"]["embedding"].T}


def decode_unrolled() -> bool:
    """Whether this backend decodes faster with unstacked layers."""
    return jax.default_backend() == "cpu"


def encode(
    params: Any,
    tokens: Int[Array, "B C"],
    position_ids: Int[Array, "B C"],
    block_position_ids: Int[Array, "B C"],
    prefix_lengths: Int[Array, "B"],
    lengths: Int[Array, "B"],
    *,
    model: GLM,
    prefix: Any = None,
) -> PrefillCache:
    """Keys and values of `tokens`, of which the first `lengths` of each row are real; `params` from `prepare`.

    Those of a trained `prefix` (see `GLM`), or of one that the parameters hold, become the first columns of the
    context.
    """
    _, outputs = _apply(
        model, params, tokens, position_ids, block_position_ids, prefix_lengths, prefix=prefix, head=False
    )
    trained = prefix_length(params) if prefix is None else prefix[0].shape[2]
    return PrefillCache(*outputs.keys_values, lengths + trained)


def empty_answers(context: PrefillCache, width: int, length: int) -> tuple[Any, Any]:
    """Room for the keys and values of `width` answers a row of `length` tokens each."""

    def keys(a):
        *layers, batch, heads, head_width, _ = a.shape
        return room((*layers, batch, width, heads, head_width, length), ("heads", "head_dim", None), a.dtype)

    def values(a):
        *layers, batch, heads, _, head_width = a.shape
        return room((*layers, batch, width, heads, length, head_width), ("heads", None, "head_dim"), a.dtype)

    def room(shape, axes, dtype):  # split as contexts are: zeros alone would be whole on every device
        axes = ("batch", None, *axes)
        return nn.with_logical_constraint(jnp.zeros(shape, dtype), (None,) * (len(shape) - len(axes)) + axes)

    return jax.tree.map(keys, context.keys), jax.tree.map(values, context.values)


def forward(
    params: Any,
    context: PrefillCache,
    answers: tuple[Any, Any],
    length: Int[Array, ""],
    tokens: Int[Array, "B W"],
    position_ids: Int[Array, "B W"],
    block_position_ids: Int[Array, "B W"],
    *,
    model: GLM,
) -> tuple[Float[Array, "B W V"], tuple[Any, Any]]:
    """Feeds the newest token of each answer, which becomes column `length` of `answers`.

    Returns float32 logits of the token that follows, and the answers with their new column.
    """
    cache = KVCache(context.keys, context.values, *answers, length)
    logits, outputs = _apply(model, params, tokens, position_ids, block_position_ids, context.lengths, cache=cache)

    # The column depends on the logits, so that XLA orders every read of a cache before its write, and writes in place.
    # Without this it copies all caches twice a token; optimization barriers are removed too early to help.
    column = length + (logits[0, 0, 0] == jnp.inf).astype(length.dtype)
    axes = (-1, -2)  # of the columns, in keys and in values
    answers = tuple(
        jax.tree.map(functools.partial(_put, axis=axis, column=column), cache, fresh)
        for cache, fresh, axis in zip(answers, outputs.keys_values, axes, strict=True)
    )
    return logits, answers


@functools.partial(jax.jit, static_argnames=("model", "top_k"))
def score(
    params: Any,
    tokens: Int[Array | np.ndarray, "B T"],
    position_ids: Int[Array | np.ndarray, "B T"],
    block_position_ids: Int[Array | np.ndarray, "B T"],
    prefix_lengths: Int[Array | np.ndarray, "B"],
    target_index: Int[Array | np.ndarray, "B K"],
    target_ids: Int[Array | np.ndarray, "B K"],
    *,
    model: GLM,
    top_k: int,
) -> tuple[Float[Array, "B K"], Float[Array, "B K _"], Int[Array, "B K _"]]:
    """Log-probabilities of the targets of written rows, and those and the ids of the `top_k` first choices there."""
    inputs = [jnp.asarray(a) for a in (tokens, position_ids, block_position_ids, prefix_lengths, target_index)]
    log_probs = jax.nn.log_softmax(for_inference(model).apply({"params": params}, *inputs))
    chosen = jnp.take_along_axis(log_probs, jnp.asarray(target_ids)[..., None], axis=-1)[..., 0]
    return everywhere(chosen), *map(everywhere, jax.lax.top_k(log_probs, top_k))


def everywhere(x: Any) -> Any:
    """`x` whole on every device of the mesh, if there is one."""
    return nn.with_logical_constraint(x, (None,) * x.ndim)


def cache_bytes(config: GLMConfig, batch: int, width: int, context: int, answer: int) -> int:
    """Bytes of keys and values for `batch` contexts with `width` answers each."""
    columns = batch * (context + width * answer)
    return 2 * config.num_layers * config.hidden_size * columns * jnp.dtype(config.dtype).itemsize


def for_inference(model: GLM) -> GLM:
    """The network over the layers as `prepare`'s parameters hold them; nothing is kept for a backward pass."""
    return model.clone(config=dataclasses.replace(model.config, scan_layers=True, remat="none"))


def _apply(model, params, *inputs, **options):
    return for_inference(model).apply({"params": params}, *inputs, output_keys_values=True, **options)


def _put(cache, new, *, axis, column):
    new = jnp.expand_dims(new, axis)
    start = [0] * cache.ndim
    start[axis] = column
    return jax.lax.dynamic_update_slice(cache, new, start)
