"""The two forward passes of decoding: the context once, then one token of every answer at a time.

A context is Part A, and whatever of Part B is already written. Its keys and values are computed once (`encode`) and
shared by the W answers of a row: beams, or samples. `forward` then takes the newest token of each answer.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from glm_jax.model.attention import KVCache
from glm_jax.model.config import GLMConfig
from glm_jax.model.layers import Embedding, LayerNorm
from glm_jax.model.ops import linear
from glm_jax.model.transformer import Layer


@struct.dataclass
class PrefillCache:
    """Encoded contexts: keys and values of every layer, and how many columns of each row mean something."""

    keys: Any  # [Y B N H C], or a tuple of Y arrays [B N H C]
    values: Any  # [Y B N C H], or a tuple of Y arrays [B N C H]
    lengths: Any  # int32 [B]


def prepare(params: Any, *, config: GLMConfig, unrolled: bool) -> Any:
    """Parameters as decoding reads them: matrices in the compute dtype, so that they are cast once and not per token.

    What has that dtype already is not copied. `unrolled` is for XLA's CPU backend: it also parts the stacked layers,
    because that backend copies a layer that it takes from a stack, which costs more than multiplying with it, and adds
    the vocabulary the other way round, with which the head of several rows is twice as fast.
    """
    dtype = jnp.dtype(config.dtype)

    def cast(path, leaf):
        norm = any("layernorm" in str(key) for key in path)  # its arithmetic is float32
        return leaf if norm or leaf.dtype == dtype else leaf.astype(dtype)

    params = jax.tree_util.tree_map_with_path(cast, params)
    return params | _apart(params, config.num_layers) if unrolled else params


@functools.partial(jax.jit, static_argnums=1)
def _apart(params, num_layers):
    layers = [jax.tree.map(lambda a, i=i: a[i], params["layers"]) for i in range(num_layers)]
    return {"layers": tuple(layers), "head": params["word_embeddings"]["embedding"].T}


def decode_unrolled() -> bool:
    """Whether this backend decodes faster with its layers apart."""
    return jax.default_backend() == "cpu"


def encode(
    params: Any,
    tokens: Int[Array, "B C"],
    position_ids: Int[Array, "B C"],
    block_position_ids: Int[Array, "B C"],
    prefix_lengths: Int[Array, "B"],
    lengths: Int[Array, "B"],
    *,
    config: GLMConfig,
) -> PrefillCache:
    """Keys and values of `tokens`, of which the first `lengths` of each row are real; `params` from `prepare`."""
    x = _embed(config, params, tokens, position_ids, block_position_ids)

    def step(x, layer):
        x, (keys, values) = _layer(config).apply({"params": layer}, x, prefix_lengths)
        keys = nn.with_logical_constraint(jnp.transpose(keys, (0, 2, 3, 1)), ("batch", "heads", "head_dim", None))
        values = nn.with_logical_constraint(jnp.swapaxes(values, 1, 2), ("batch", "heads", None, "head_dim"))
        return x, (keys, values)

    _, (keys, values) = _over_layers(step, x, params["layers"])
    return PrefillCache(keys, values, lengths)


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
    config: GLMConfig,
) -> tuple[Float[Array, "B W V"], tuple[Any, Any]]:
    """Feeds the newest token of each answer, which becomes column `length` of `answers`.

    Returns float32 logits of the token that follows, and the answers with their new column.
    """
    x = _embed(config, params, tokens, position_ids, block_position_ids)

    def step(x, layer, *cache):
        return _layer(config).apply({"params": layer}, x, context.lengths, cache=KVCache(*cache), answer_length=length)

    x, new = _over_layers(step, x, params["layers"], context.keys, context.values, *answers)
    x = LayerNorm(config.dtype).apply({"params": params["final_layernorm"]}, x)
    if "head" in params and len(x) > 1:
        logits = linear(x, params["head"], "float32")
    else:
        table = _table(config, params, "word_embeddings")
        logits = table.apply({"params": params["word_embeddings"]}, x, method=Embedding.attend)

    # The column's number is made to depend on the logits, so that XLA knows of every read of a cache as coming before
    # its write, and writes in place; otherwise it copies all caches, twice a token. Barriers it removes before.
    column = length + (logits[0, 0] == jnp.inf).astype(length.dtype)
    axes = (-1, -2)  # of the columns, in keys and in values
    answers = tuple(
        jax.tree.map(functools.partial(_put, axis=axis, column=column), cache, fresh)
        for cache, fresh, axis in zip(answers, new, axes, strict=True)
    )
    return logits.reshape(*tokens.shape, -1), answers


def everywhere(x: Any) -> Any:
    """`x` whole on every device of the mesh, if there is one."""
    return nn.with_logical_constraint(x, (None,) * x.ndim)


def cache_bytes(config: GLMConfig, batch: int, width: int, context: int, answer: int) -> int:
    """Bytes of keys and values for `batch` contexts with `width` answers each."""
    columns = batch * (context + width * answer)
    return 2 * config.num_layers * config.hidden_size * columns * jnp.dtype(config.dtype).itemsize


def _layer(config):
    return Layer(config, deterministic=True, parent=None)


def _table(config, params, name):
    rows, width = params[name]["embedding"].shape
    return Embedding(rows, width, "vocab" if name == "word_embeddings" else "positions", config.init_std, config.dtype)


def _embed(config, params, tokens, position_ids, block_position_ids):
    ids = {"word_embeddings": tokens, "position_embeddings": position_ids}
    if config.block_positions:
        ids["block_position_embeddings"] = block_position_ids
    x = sum(_table(config, params, name).apply({"params": params[name]}, i) for name, i in ids.items())
    return nn.with_logical_constraint(x.reshape(-1, config.hidden_size), ("batch", None))


def _put(cache, new, *, axis, column):
    new = jnp.expand_dims(new, axis)
    start = [0] * cache.ndim
    start[axis] = column
    return jax.lax.dynamic_update_slice(cache, new, start)


def _over_layers(step, x, *per_layer):
    """Runs `step(x, *parts of one layer)` over all layers, stacked or apart; its outputs come as the layers are."""
    if isinstance(per_layer[0], dict):
        return jax.lax.scan(lambda x, parts: step(x, *parts), x, per_layer)
    outputs = []
    for parts in zip(*per_layer, strict=True):
        x, output = step(x, *parts)
        outputs.append(output)
    return x, tuple(zip(*outputs, strict=True))
