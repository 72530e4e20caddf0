"""What tuning methods add to the parameters of the network, and how it takes part.

Beside the kernel [*inputs *outputs] of a `Linear`, stacked over the layers as the kernel is:
  lora_a [*inputs r], lora_b [r *outputs]   LoRA (Hu et al. 2021, arXiv 2106.09685): x · kernel + scale · (x · A) · B
    or [*inputs 3 r] and [3 r *outputs[1:]], one pair for each of the first output axis (query, key, value)
  lora_scale []                             α / r, never trained
  input_scale [*inputs]                     (IA)³ (Liu et al. 2022, arXiv 2205.05638): the input times this
  output_scale [n *outputs[1:]] or [*outputs]   the last n of the first output axis times this
Under "prefix", keys and values of every layer that all positions see (P-tuning v2, Liu et al. 2021, arXiv 2110.07602):
  keys, values [Y P N H]                            as they are
  embedding [P D], mlp/{first,second}/{kernel,bias} or made by an MLP: D -> W, tanh, W -> Y · 2 · N · H
  tokens [P D]                                      or those that the network computes for P virtual tokens in front of
                                                    the text (prompt tuning, Lester et al. 2021, arXiv 2104.08691)
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from glm_jax.model.ops import linear, precision

ADAPTER_LEAVES = ("lora_a", "lora_b", "lora_scale", "input_scale", "output_scale")


def low_rank_product(
    x: Float[Array, "R *inputs"], adapter: Mapping[str, Any], part: slice = slice(None)
) -> Float[Array, "R *outputs"]:
    """scale · (x · A) · B in the dtype of x, without forming A · B. `part` is a slice of the first output axis."""
    a, b = (adapter[name].astype(x.dtype) for name in ("lora_a", "lora_b"))
    scale = adapter["lora_scale"].astype(x.dtype)
    if a.ndim == x.ndim:  # one pair
        return linear(linear(x, a, x.dtype.name) * scale, b[:, part], x.dtype.name)
    a, b = a[..., part, :], b[part]
    low = linear(x, a, x.dtype.name) * scale  # [R parts r]
    axes = (((2,), (1,)), ((1,), (0,)))
    out = jax.lax.dot_general(low, b, axes, precision=precision(x), preferred_element_type=x.dtype)
    return jnp.moveaxis(out, 0, 1)


def scale_input(x: Float[Array, "R *inputs"], adapter: Mapping[str, Any]) -> Float[Array, "R *inputs"]:
    """x, times `input_scale` where the adapter has it."""
    return x if "input_scale" not in adapter else x * adapter["input_scale"].astype(x.dtype)[None]


def scale_output(
    out: Float[Array, "R *outputs"], adapter: Mapping[str, Any], part: slice = slice(None)
) -> Float[Array, "R *outputs"]:
    """`out`, times `output_scale` where the adapter has it. `part` is the slice of the first output axis in `out`."""
    if "output_scale" not in adapter:
        return out
    scale = adapter["output_scale"].astype(out.dtype)
    if out.ndim > 2:  # query, key and value, of which only the last are scaled
        scale = jnp.concatenate([jnp.ones((3 - len(scale), *scale.shape[1:]), scale.dtype), scale])[part]
    return out * scale[None]


def prefix_length(params: Mapping[str, Any]) -> int:
    """P, the trained keys that every position sees; 0 without any."""
    prefix = params.get("prefix")
    if prefix is None:
        return 0
    return (
        prefix["keys"].shape[1]
        if "keys" in prefix
        else next(prefix[name].shape[0] for name in ("embedding", "tokens") if name in prefix)
    )


def projected_prefix(
    prefix: Mapping[str, Any], layers: int, heads: int, head_width: int
) -> tuple[Float[Array, "Y 1 P N H"], Float[Array, "Y 1 P N H"]]:
    """Keys and values of every layer from their embedding and MLP, float32."""
    hidden = jnp.tanh(_affine(prefix["mlp"]["first"], prefix["embedding"]))
    both = _affine(prefix["mlp"]["second"], hidden).reshape(-1, layers, 2, heads, head_width)
    keys, values = (jnp.moveaxis(both[:, :, i], 0, 1)[:, None] for i in (0, 1))
    return keys, values


def _affine(params, x):
    return jnp.dot(x, params["kernel"], precision=jax.lax.Precision.HIGHEST) + params["bias"][None]
