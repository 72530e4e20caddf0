"""The classification head of the original (GLMForSequenceClassification): pool one column, tanh, linear."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import GLM, init_params

POOLS = ("cls", "start", "pad")


def classifier_logits(
    params: Mapping[str, Any],
    hidden: Float[Array, "B T D"],
    prefix_lengths: Int[Array, "B"],
    pool: str = "cls",
) -> Float[Array, "B _"]:
    """The logits of the classes, float32.

    Args:
      params: {"pool", "output"}: {"kernel", "bias"}, [D D] and [D classes].
      hidden: from `GLM` with head=False, at every position.
      prefix_lengths: where Part B starts.
      pool: the column to read: "cls" the first, "start" the first of Part B, "pad" the last of Part A.

    Raises ValueError for another `pool`.
    """
    if pool not in POOLS:
        raise ValueError(f"unknown pool {pool!r}; known: {', '.join(POOLS)}")
    column = {"cls": jnp.zeros_like(prefix_lengths), "start": prefix_lengths, "pad": prefix_lengths - 1}[pool]
    pooled = jnp.take_along_axis(hidden.astype(jnp.float32), column[:, None, None], axis=1)[:, 0]
    return _linear(params["output"], jnp.tanh(_linear(params["pool"], pooled)))


def with_classifier(classes: int, model: GLM | GLMConfig, key: Any) -> dict[str, Any]:
    """Fresh parameters of the model and, under "classifier", of a head for `classes`; boxed with their axes."""
    params, key = init_params(model, key), jax.random.fold_in(key, 1)
    config = model if isinstance(model, GLMConfig) else model.config
    width = config.hidden_size

    def linear(key, size):
        kernel = config.init_std * jax.random.normal(key, (width, size))
        axes = nn.LogicallyPartitioned
        return {"kernel": axes(kernel, ("embed", None)), "bias": axes(jnp.zeros(size), (None,))}

    first, second = jax.random.split(key)
    return {**params, "classifier": {"pool": linear(first, width), "output": linear(second, classes)}}


def _linear(params, x):
    return jnp.dot(x, params["kernel"], precision=jax.lax.Precision.HIGHEST) + params["bias"][None]
