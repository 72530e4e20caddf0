"""The plain layers of a Transformer, with logical axis names on their parameters: embedding, dense, layer norm.

Parameters are float32; the compute dtype is a field. Activations are [rows features]: XLA's CPU backend runs dense
layers on two axes up to twice as fast as on three, and elsewhere the reshape is free.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from glm_jax.model.adapters import ADAPTER_LEAVES, low_rank_product, scale_input, scale_output
from glm_jax.model.dropout import dropout
from glm_jax.model.ops import DENSE, add_bias, layer_norm, linear


class Embedding(nn.Module):
    """A table [rows D]; an id outside the table gives NaN."""

    rows: int
    width: int
    row_axis: str
    stddev: float
    dtype: str

    def setup(self):
        """Declares the table."""
        init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), (self.row_axis, "embed"))
        self.embedding = self.param("embedding", init, (self.rows, self.width), jnp.float32)

    def __call__(self, ids: Int[Array, "*shape"]) -> Float[Array, "*shape D"]:
        """Rows of the table in the compute dtype."""
        return jnp.take(self._table(), ids, axis=0, mode="fill", fill_value=jnp.nan).astype(self.dtype)

    def attend(self, hidden: Float[Array, "R D"]) -> Float[Array, "R V"]:
        """`hidden` times the transposed table: inputs in the dtype of `hidden`, result in float32."""
        table = self._table().astype(hidden.dtype)
        return linear(hidden, jnp.swapaxes(table, 0, 1), "float32")

    def _table(self):
        # Activations are not split along D. Without this constraint the partitioner turns a lookup in a table that is
        # split over "embed" into a fully replicated [B T D].
        return nn.with_logical_constraint(self.embedding, (self.row_axis, None))


class Linear(nn.Module):
    """x · kernel + bias over the last axes of x; kernel [*inputs *outputs], bias [*outputs].

    Parameters that a tuning method has put beside the kernel take part: LoRA's factors and (IA)³'s scales, see
    glm_jax/model/adapters.py.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[str | None, ...]
    stddev: float
    dtype: str
    adapter_dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "R *inputs"], part: slice = slice(None)) -> Float[Array, "R *outputs"]:
        """`part` selects a slice of the first output axis to compute."""
        n = len(self.inputs)
        init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), self.axes)
        kernel = self.param("kernel", init, self.inputs + self.outputs, jnp.float32)
        # A kernel is split over fsdp along its inputs. A bias has no inputs, so its axes have other names.
        axes = tuple(f"bias_{axis}" if axis in ("mlp", "head_dim") else axis for axis in self.axes[n:])
        zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), axes)
        bias = self.param("bias", zeros, self.outputs, jnp.float32)
        adapter = {name: value for name in ADAPTER_LEAVES if (value := self.get_variable("params", name)) is not None}
        x = scale_input(x, adapter)
        kernel, bias = kernel[(slice(None),) * n + (part,)], bias[part]
        out = checkpoint_name(linear(x, kernel.astype(self.dtype), self.dtype), DENSE)
        if "lora_a" in adapter:
            drops = self.adapter_dropout > 0 and self.has_rng("dropout")
            dropped = dropout(x, self.adapter_dropout, self.make_rng("dropout")) if drops else x
            out = out + low_rank_product(dropped, adapter, part)
        return scale_output(add_bias(out, bias), adapter, part)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis with statistics in float32."""

    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "R D"]) -> Float[Array, "R D"]:
        """Normalised x in the compute dtype."""
        ones = nn.with_logical_partitioning(nn.initializers.ones_init(), ("embed",))
        scale = self.param("scale", ones, (x.shape[-1],), jnp.float32)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("embed",))
        bias = self.param("bias", zeros, (x.shape[-1],), jnp.float32)
        return layer_norm(x, scale, bias, self.dtype)
