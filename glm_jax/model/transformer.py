"""GLM as Linen modules (Du et al., ACL 2022, section 2; the original's GLMModel).

A pre-layer-norm Transformer with three embeddings summed at the entrance (token, position of the blank in Part A,
position inside the blank), GLM's visibility rule in the attention (glm_jax/model/attention.py) and a head tied to the
token embedding. Parameters are float32 and carry logical axis names; layers are stacked on axis 0.

Between embedding and head, activations are [B·T D]: dense layers on two axes run up to twice as fast on XLA's CPU
backend as on three, and the reshape is free elsewhere.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta
from jaxtyping import Array, Float, Int

from glm_jax.model.attention import KVCache, attention, cached_attention
from glm_jax.model.batch import Slot, slot_slices
from glm_jax.model.config import REMAT_POLICIES, GLMConfig
from glm_jax.model.dropout import dropout
from glm_jax.model.layers import Embedding, LayerNorm, Linear
from glm_jax.model.ops import gelu


def _rows(x, index):
    """Rows `index` [B K] of x, which holds B sequences as [B·T D] -> [B·K D]."""
    x = x.reshape(index.shape[0], -1, x.shape[-1])
    return jnp.take_along_axis(x, index[:, :, None], axis=1).reshape(-1, x.shape[-1])


class Attention(nn.Module):
    """Multi-head attention under GLM's visibility rule, with a fused query-key-value projection."""

    config: GLMConfig
    deterministic: bool
    slots: tuple[Slot, ...] | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "BT D"],
        prefix_lengths: Int[Array, "B *P"],
        query_index: Int[Array, "B K"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        cache: KVCache | None = None,
        answer_length: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "BK D"], tuple[Float[Array, "B T N H"], Float[Array, "B T N H"]]]:
        """Attends from every position, or from the positions `query_index` only; also returns keys and values.

        With a `cache`, x holds the newest token of each answer [B·W D], `prefix_lengths` are the lengths of the
        contexts, and `answer_length` columns of the cached answers count.
        """
        config = self.config
        batch, width = prefix_lengths.shape[0], config.hidden_size
        heads = (config.num_heads, config.head_width)
        project = Linear(
            (width,), (3, *heads), ("embed", "qkv", "heads", "head_dim"), config.init_std, config.dtype,
            name="query_key_value",
        )  # fmt: skip
        if query_index is None:
            q, k, v = jnp.split(project(x), 3, axis=1)
        else:
            q = project(_rows(x, query_index), slice(0, 1))
            k, v = jnp.split(project(x, slice(1, 3)), 2, axis=1)
        q, k, v = (
            nn.with_logical_constraint(a.reshape(batch, -1, *heads), ("batch", "sequence", "heads", "head_dim"))
            for a in (q, k, v)
        )
        if cache is not None:
            attended = cached_attention(q, k, v, cache, prefix_lengths, answer_length)
        else:
            attended = self._attend(q, k, v, prefix_lengths, query_index, segment_ids)
        stddev = config.init_std / (2 * config.num_layers) ** 0.5
        dense = Linear(heads, (width,), ("heads", "head_dim", "embed"), stddev, config.dtype, name="dense")
        return dense(attended.reshape(-1, *heads)), (k, v)

    def _attend(self, q, k, v, prefix_lengths, query_index, segment_ids):
        """Each slot by itself."""
        config = self.config
        drop = config.attention_dropout > 0.0 and not self.deterministic
        slots = self.slots or (Slot(k.shape[1], q.shape[1]),)
        prefix_lengths = prefix_lengths.reshape(-1, len(slots))
        attended = []
        for number, (columns, targets) in enumerate(slot_slices(slots)):
            attended.append(
                attention(
                    q[:, columns if query_index is None else targets],
                    k[:, columns],
                    v[:, columns],
                    prefix_lengths[:, number],
                    query_index=None if query_index is None else query_index[:, targets] - columns.start,
                    segment_ids=None if segment_ids is None else segment_ids[:, columns],
                    longest_prefix=slots[number].longest_prefix,
                    backend=config.attention_backend,
                    dropout_rate=config.attention_dropout,
                    dropout_key=self.make_rng("dropout") if drop else None,
                )
            )
        return attended[0] if len(slots) == 1 else jnp.concatenate(attended, axis=1)


class MLP(nn.Module):
    """The feed-forward block: width D -> 4 D -> D with GELU."""

    config: GLMConfig

    @nn.compact
    def __call__(self, x: Float[Array, "BT D"]) -> Float[Array, "BT D"]:
        """Position-wise."""
        config = self.config
        width, wide = config.hidden_size, config.ffn_width
        x = Linear((width,), (wide,), ("embed", "mlp"), config.init_std, config.dtype, name="dense_h_to_4h")(x)
        x = nn.with_logical_constraint(gelu(x, config.gelu), ("batch", "mlp"))
        stddev = config.init_std / (2 * config.num_layers) ** 0.5
        return Linear((wide,), (width,), ("mlp", "embed"), stddev, config.dtype, name="dense_4h_to_h")(x)


class Layer(nn.Module):
    """One pre-layer-norm Transformer layer."""

    config: GLMConfig
    deterministic: bool = True
    slots: tuple[Slot, ...] | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "BT D"],
        prefix_lengths: Int[Array, "B *P"],
        query_index: Int[Array, "B K"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        cache: KVCache | None = None,
        answer_length: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "BK D"], tuple[Float[Array, "B T N H"], Float[Array, "B T N H"]]]:
        """The layer's output at every position, or at the positions `query_index` only, and its keys and values."""
        config = self.config
        normed = LayerNorm(config.dtype, name="input_layernorm")(x)
        attend = Attention(config, self.deterministic, self.slots, name="attention")
        branch, keys_and_values = attend(normed, prefix_lengths, query_index, segment_ids, cache, answer_length)
        x = (x if query_index is None else _rows(x, query_index)) + self._dropout(branch)
        x = nn.with_logical_constraint(x, ("batch", None))
        branch = MLP(config, name="mlp")(LayerNorm(config.dtype, name="post_attention_layernorm")(x))
        return nn.with_logical_constraint(x + self._dropout(branch), ("batch", None)), keys_and_values

    def _dropout(self, x):
        rate = self.config.hidden_dropout
        return x if self.deterministic or not rate else dropout(x, rate, self.make_rng("dropout"))


class GLM(nn.Module):
    """The language model: `GLM(config).apply({"params": params}, tokens, ...)`."""

    config: GLMConfig

    def setup(self):
        """Declares embeddings, stacked layers and the final layer norm."""
        config = self.config
        table = functools.partial(Embedding, width=config.hidden_size, stddev=config.init_std, dtype=config.dtype)
        self.word_embeddings = table(config.vocab_size, row_axis="vocab")
        self.position_embeddings = table(config.num_positions, row_axis="positions")
        if config.block_positions:
            self.block_position_embeddings = table(config.num_positions, row_axis="positions")
        self.layers = self.param("layers", self._init_layers)
        self.final_layernorm = LayerNorm(config.dtype)

    def _init_layers(self, key):
        config = self.config
        x, prefix_lengths = jnp.zeros((1, config.hidden_size), config.dtype), jnp.zeros((1,), jnp.int32)
        layer = Layer(dataclasses.replace(config, attention_backend="dense"), parent=None)  # cuDNN's knows no vmap
        init = jax.vmap(lambda key: layer.init(key, x, prefix_lengths)["params"])
        return meta.add_axis(init(jax.random.split(key, config.num_layers)), 0, {meta.PARTITION_NAME: "layers"})

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        position_ids: Int[Array, "B T"],
        block_position_ids: Int[Array, "B T"],
        prefix_lengths: Int[Array, "B *P"],
        target_index: Int[Array, "B K"] | None = None,
        *,
        segment_ids: Int[Array, "B T"] | None = None,
        slots: tuple[Slot, ...] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "B _ V"]:
        """Float32 logits at every position [B T V], or at the positions `target_index` only [B K V].

        With `target_index` the other positions neither meet the vocabulary nor pass the last layer beyond its keys and
        values. `segment_ids` are for several texts in a row, or several answers to one: a token sees those of its own
        segment, and of segment 0. `slots` says how wide the examples are that stand side by side in a row, blind to
        each other; `prefix_lengths` are [B P] then. `deterministic=False` needs rngs={"dropout": key} unless both rates
        are 0. See `check_lengths` for positions outside the tables.
        """
        hidden = self.hidden_states(
            tokens,
            position_ids,
            block_position_ids,
            prefix_lengths,
            target_index,
            segment_ids=segment_ids,
            slots=slots,
            deterministic=deterministic,
        )
        logits = self.word_embeddings.attend(hidden.reshape(-1, self.config.hidden_size))
        logits = logits.reshape(*hidden.shape[:2], -1)
        return nn.with_logical_constraint(logits, ("batch", "targets", "vocab"))

    def hidden_states(
        self,
        tokens: Int[Array, "B T"],
        position_ids: Int[Array, "B T"],
        block_position_ids: Int[Array, "B T"],
        prefix_lengths: Int[Array, "B *P"],
        target_index: Int[Array, "B K"] | None = None,
        *,
        segment_ids: Int[Array, "B T"] | None = None,
        slots: tuple[Slot, ...] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "B _ D"]:
        """What the head reads, after the final layer norm; arguments as for the logits."""
        config = self.config
        if slots and sum(slot.columns for slot in slots) != tokens.shape[1]:
            raise ValueError(f"the columns of {slots} must add up to those of a row, {tokens.shape[1]}")
        x = self.word_embeddings(tokens) + self.position_embeddings(position_ids)
        if config.block_positions:
            x = x + self.block_position_embeddings(block_position_ids)
        x = nn.with_logical_constraint(x.reshape(-1, config.hidden_size), ("batch", None))

        keys = None
        if not deterministic and (config.hidden_dropout or config.attention_dropout):
            key, *keys = jax.random.split(self.make_rng("dropout"), config.num_layers + 1)
            keys = jnp.stack(keys)
            x = dropout(x, config.hidden_dropout, key)
        x = apply_layers(config, self.layers, x, prefix_lengths, target_index, keys, segment_ids, slots)
        return self.final_layernorm(x).reshape(tokens.shape[0], -1, config.hidden_size)


def apply_layers(
    config: GLMConfig,
    layers: Any,
    x: Float[Array, "BT D"],
    prefix_lengths: Int[Array, "B *P"],
    target_index: Int[Array, "B K"] | None = None,
    dropout_keys: Any | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    slots: tuple[Slot, ...] | None = None,
) -> Float[Array, "BK D"]:
    """Runs the stacked parameters `layers` over x; the last layer only at `target_index` where that is given."""

    def step(x, params_and_key, query_index=None):
        params, key = params_and_key
        layer = Layer(config, key is None, slots, parent=None)  # applied to its parameters, owned by none
        rngs = None if key is None else {"dropout": key}
        return layer.apply({"params": params}, x, prefix_lengths, query_index, segment_ids, rngs=rngs)[0]

    if config.remat != "none":
        # Inside a scan nothing can be merged across the barrier, so XLA need not be kept from trying.
        step = jax.checkpoint(step, policy=REMAT_POLICIES[config.remat], prevent_cse=not config.scan_layers)
    count = config.num_layers - (target_index is not None)
    first, rest = _split((layers, dropout_keys), [count])
    if config.scan_layers:
        x, _ = jax.lax.scan(lambda x, layer: (step(x, layer), None), x, first)
    else:
        for layer in _split(first, list(range(1, count)))[:count]:
            x = step(x, jax.tree.map(lambda a: a[0], layer))
    if target_index is not None:
        x = step(x, jax.tree.map(lambda a: a[0], rest), target_index)
    return x


def _split(tree, boundaries):
    """Cuts every leaf along axis 0. One split, because its gradient is one concatenation."""
    leaves, structure = jax.tree.flatten(tree)
    return [structure.unflatten(parts) for parts in zip(*(jnp.split(a, boundaries) for a in leaves), strict=True)]


def init_params(config: GLMConfig, key: Any) -> Any:
    """Fresh parameters, boxed with their logical axis names (`flax.linen.get_partition_spec`, `flax.linen.unbox`).

    Embeddings and kernels from N(0, init_std²), projections into the residual stream from
    N(0, init_std² / (2 · num_layers)), biases 0, layer norm scales 1, as in the original.
    """
    ids = jnp.zeros((1, 1), jnp.int32)
    config = dataclasses.replace(config, attention_backend="dense")  # nothing is attended to
    return GLM(config).init(key, ids, ids, ids, jnp.zeros((1,), jnp.int32))["params"]


def parameter_count(config: GLMConfig) -> int:
    """Number of parameters, from shapes alone."""
    shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
