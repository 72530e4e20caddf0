"""The plain layers of a Transformer, with logical axis names on their parameters: embedding, dense, layer norm.

Parameters are float32; the compute dtype is a field. Activations are best [rows features]: on XLA's CPU backend dense
layers on two axes run up to twice as fast, forward and backward, as on three, and elsewhere the reshape is free.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from glm_jax.model.ops import DENSE, _layer_norm, add_bias, linear


class Embedding(nn.Module):
    """A table [rows D]; an id behind its last row gives NaN, not that row."""

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
        """Products of `hidden` with every row of the table: inputs in the compute dtype, sums in float32."""
        table = self._table().astype(hidden.dtype)
        return linear(hidden, jnp.swapaxes(table, 0, 1), "float32")

    def _table(self):
        # Whole rows, as activations have whole rows: without this the partitioner passes a lookup in a table that is
        # split over "embed" through a fully replicated [B T D].
        return nn.with_logical_constraint(self.embedding, (self.row_axis, None))


class Linear(nn.Module):
    """x · kernel + bias over the last axes of x; kernel [*inputs *outputs], bias [*outputs]."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[str, ...]
    stddev: float
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "R *inputs"], part: slice = slice(None)) -> Float[Array, "R *outputs"]:
        """`part` computes that slice of the first output axis only."""
        n = len(self.inputs)
        init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), self.axes)
        kernel = self.param("kernel", init, self.inputs + self.outputs, jnp.float32)
        # A kernel is split over fsdp along its inputs, which a bias does not have: its outputs have names of their own.
        axes = tuple(f"bias_{axis}" if axis in ("mlp", "head_dim") else axis for axis in self.axes[n:])
        zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), axes)
        bias = self.param("bias", zeros, self.outputs, jnp.float32)
        kernel, bias = kernel[(slice(None),) * n + (part,)], bias[part]
        out = checkpoint_name(linear(x, kernel.astype(self.dtype), self.dtype), DENSE)
        return add_bias(out, bias)


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
        return _layer_norm(x, scale, bias, self.dtype)
