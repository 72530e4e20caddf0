"""The classification head of the original (GLMForSequenceClassification): pool one column, tanh, linear."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

POOLS = ("cls", "start", "pad")


def classify(
    params: Mapping[str, Any],
    hidden: Float[Array, "B T D"],
    prefix_lengths: Int[Array, "B"],
    pool: str = "cls",
) -> Float[Array, "B _"]:
    """Scores of each class, float32.

    Args:
      params: {"pool", "output"}: {"kernel", "bias"}, [D D] and [D classes].
      hidden: from `GLM.hidden_states`.
      prefix_lengths: where Part B starts.
      pool: the column to read: "cls" the first, "start" the first of Part B, "pad" the last of Part A.

    Raises ValueError for another `pool`.
    """
    if pool not in POOLS:
        raise ValueError(f"unknown pool {pool!r}; known: {', '.join(POOLS)}")
    column = {"cls": jnp.zeros_like(prefix_lengths), "start": prefix_lengths, "pad": prefix_lengths - 1}[pool]
    pooled = jnp.take_along_axis(hidden.astype(jnp.float32), column[:, None, None], axis=1)[:, 0]
    return _linear(params["output"], jnp.tanh(_linear(params["pool"], pooled)))


def _linear(params, x):
    return jnp.dot(x, params["kernel"], precision=jax.lax.Precision.HIGHEST) + params["bias"][None]
