"""One Transformer layer of GLM: attention, feed-forward block, and the layer that joins them.

Another attention, MLP or layer takes the place of these through arguments of `GLM`: see docs/custom_layers.md.
Activations are [B·T D]: see glm_jax/model/layers.py.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from glm_jax.model.attention import attention, attention_probabilities, with_prefix
from glm_jax.model.batch import Slot, slot_slices
from glm_jax.model.cached_attention import KVCache, cached_attention
from glm_jax.model.config import GLMConfig
from glm_jax.model.dropout import dropout
from glm_jax.model.layers import LayerNorm, Linear
from glm_jax.model.ops import gelu


def take_rows(x: Float[Array, "BT D"], index: Int[Array, "B K"]) -> Float[Array, "BK D"]:
    """Rows `index` of x, which holds B sequences as [B·T D] -> [B·K D]."""
    x = x.reshape(index.shape[0], -1, x.shape[-1])
    return jnp.take_along_axis(x, index[:, :, None], axis=1).reshape(-1, x.shape[-1])


@struct.dataclass
class LayerInputs:
    """What a layer reads beside its activations."""

    prefix_lengths: Any  # int32 [B], or [B P] with P slots; with a cache, the lengths of the contexts
    position_ids: Any  # int32 [B T]
    block_position_ids: Any  # int32 [B T]
    query_index: Any = None  # int32 [B K], the positions whose output is asked for; None: all
    segment_ids: Any = None  # int32 [B T]
    prefix: Any = None  # this layer's trained keys and values, each [B P N H] or [1 P N H]
    cache: KVCache | None = None  # this layer's; x then holds the newest token of each answer [B·W D]
    slots: tuple[Slot, ...] | None = struct.field(pytree_node=False, default=None)
    output_attentions: bool = struct.field(pytree_node=False, default=False)

    def at_queries(self, ids: Int[Array, "B T"]) -> Int[Array, "B _"]:
        """`ids` of the positions whose output is asked for."""
        return ids if self.query_index is None else jnp.take_along_axis(ids, self.query_index, axis=1)


@struct.dataclass
class LayerOutputs:
    """What a layer computes beside its activations."""

    keys: Any  # [B T N H], or [B P+T N H] with a prefix
    values: Any  # as keys
    attentions: Any = None  # float32 [B N T T], where asked for


class Attention(nn.Module):
    """Multi-head attention under GLM's mask, with a fused query-key-value projection."""

    config: GLMConfig
    deterministic: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "BT D"], inputs: LayerInputs) -> tuple[Float[Array, "BK D"], LayerOutputs]:
        """Attends from every position, or from the positions `inputs.query_index` only."""
        config = self.config
        batch, width = inputs.prefix_lengths.shape[0], config.hidden_size
        heads = (config.num_heads, config.head_width)
        project = Linear(
            (width,), (3, *heads), ("embed", "qkv", "heads", "head_dim"), config.init_std, config.dtype,
            config.adapter_dropout, name="query_key_value",
        )  # fmt: skip
        if inputs.query_index is None:
            q, k, v = jnp.split(project(x), 3, axis=1)
        else:
            q = project(take_rows(x, inputs.query_index), slice(0, 1))
            k, v = jnp.split(project(x, slice(1, 3)), 2, axis=1)
        q, k, v = (
            nn.with_logical_constraint(a.reshape(batch, -1, *heads), ("batch", "sequence", "heads", "head_dim"))
            for a in (q, k, v)
        )
        q, k = self.encode_positions(q, k, inputs)
        if inputs.cache is not None:
            attended = cached_attention(q, k, v, inputs.cache, inputs.prefix_lengths)
        else:
            attended = self._attend(q, k, v, inputs)
        stddev = config.init_std / (2 * config.num_layers) ** 0.5
        dense = Linear(heads, (width,), ("heads", "head_dim", "embed"), stddev, config.dtype, config.adapter_dropout,
                       name="dense")  # fmt: skip
        return dense(attended.reshape(-1, *heads)), self._outputs(q, k, v, inputs)

    def encode_positions(
        self, q: Float[Array, "B K N H"], k: Float[Array, "B T N H"], inputs: LayerInputs
    ) -> tuple[Float[Array, "B K N H"], Float[Array, "B T N H"]]:
        """For subclasses: positions applied to queries and keys, such as rotary ones. This one applies none."""
        del inputs
        return q, k

    def _attend(self, q, k, v, inputs):
        """Each slot by itself."""
        config, query_index, segment_ids = self.config, inputs.query_index, inputs.segment_ids
        drop = config.attention_dropout > 0.0 and not self.deterministic
        slots = inputs.slots or (Slot(k.shape[1], q.shape[1]),)
        prefix_lengths = inputs.prefix_lengths.reshape(-1, len(slots))
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
                    prefix=inputs.prefix,
                    longest_prefix=slots[number].longest_prefix,
                    backend=config.attention_backend,
                    dropout_rate=config.attention_dropout,
                    dropout_key=self.make_rng("dropout") if drop else None,
                )
            )
        return attended[0] if len(slots) == 1 else jnp.concatenate(attended, axis=1)

    def _outputs(self, q, k, v, inputs):
        keys, values = (k, v) if inputs.prefix is None else with_prefix(inputs.prefix, k, v)
        if not inputs.output_attentions:
            return LayerOutputs(keys, values)
        probabilities = attention_probabilities(
            q, k, inputs.prefix_lengths.reshape(-1), query_index=inputs.query_index, segment_ids=inputs.segment_ids,
            prefix=inputs.prefix, backend=self.config.attention_backend,
        )  # fmt: skip
        return LayerOutputs(keys, values, probabilities)


class MLP(nn.Module):
    """The feed-forward block: width D -> 4 D -> D with GELU."""

    config: GLMConfig

    @nn.compact
    def __call__(self, x: Float[Array, "BT D"]) -> Float[Array, "BT D"]:
        """Position-wise."""
        config = self.config
        width, wide = config.hidden_size, config.ffn_width
        dropout = config.adapter_dropout
        x = Linear((width,), (wide,), ("embed", "mlp"), config.init_std, config.dtype, dropout, name="dense_h_to_4h")(x)
        x = nn.with_logical_constraint(gelu(x, config.gelu), ("batch", "mlp"))
        stddev = config.init_std / (2 * config.num_layers) ** 0.5
        return Linear((wide,), (width,), ("mlp", "embed"), stddev, config.dtype, dropout, name="dense_4h_to_h")(x)


class Layer(nn.Module):
    """One pre-layer-norm Transformer layer."""

    config: GLMConfig
    deterministic: bool = True
    attention: type[nn.Module] = Attention
    mlp: type[nn.Module] = MLP

    @nn.compact
    def __call__(self, x: Float[Array, "BT D"], inputs: LayerInputs) -> tuple[Float[Array, "BK D"], LayerOutputs]:
        """The output at every position, or at the positions `inputs.query_index` only, and the keys and values."""
        config, index = self.config, inputs.query_index
        normed = LayerNorm(config.dtype, name="input_layernorm")(x)
        branch, outputs = self.attention(config, self.deterministic, name="attention")(normed, inputs)
        x = (x if index is None else take_rows(x, index)) + self._dropout(branch)
        x = nn.with_logical_constraint(x, ("batch", None))
        branch = self.mlp(config, name="mlp")(LayerNorm(config.dtype, name="post_attention_layernorm")(x))
        return nn.with_logical_constraint(x + self._dropout(branch), ("batch", None)), outputs

    def _dropout(self, x):
        rate = self.config.hidden_dropout
        return x if self.deterministic or not rate else dropout(x, rate, self.make_rng("dropout"))
