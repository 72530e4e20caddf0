"""Dropout with cheap masks.

The mask of an element is a hash of its index and of two random words. JAX's generator spends a hundred operations on
every number: the masks of GLM's attention probabilities took a fifth of a training step on CPU. A mask is recomputed
wherever it is needed, so none is stored, and on any mesh every device computes its own part.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt32


def dropout(x: Float[Array, "*shape"], rate: float, key: Any | None) -> Float[Array, "*shape"]:
    """Zeroes each element with probability `rate` and scales the rest by 1 / (1 - rate).

    Without a key, or at rate 0, returns x.
    """
    if key is None or rate == 0.0:
        return x
    return jnp.where(keep_mask(mask_seeds(key), rate, x.shape), x / (1.0 - rate), jnp.zeros_like(x))


def mask_seeds(key: Any) -> UInt32[Array, "2"]:
    """The two random words that a mask is made from."""
    return jax.random.bits(key, (2,), jnp.uint32)


def keep_mask(seeds: UInt32[Array, "2"], rate: float, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """False with probability `rate`, to within 2^-32, independently for each element of `shape`."""
    rows, columns = mask_words(seeds, shape)
    return dropout_mask_from_hash(rows[..., None], columns.reshape((1,) * rows.ndim + (-1,)), rate)


def mask_words(seeds: UInt32[Array, "2"], shape: tuple[int, ...]) -> tuple[UInt32[Array, "..."], UInt32[Array, "C"]]:
    """A word for each row of a mask of `shape`, and one for each of its C columns, for `dropout_mask_from_hash`."""
    if math.prod(shape[:-1]) > 2**32:
        raise ValueError(f"shape {shape} has more than 2^32 rows, which 32 bits cannot number")
    row, stride = jnp.zeros(shape[:-1], jnp.uint32), 1
    for axis in reversed(range(len(shape) - 1)):
        row = row + jax.lax.broadcasted_iota(jnp.uint32, shape[:-1], axis) * np.uint32(stride)
        stride *= shape[axis]
    return _mix(row ^ seeds[0]), _mix(jnp.arange(shape[-1], dtype=jnp.uint32) ^ seeds[1])


def dropout_mask_from_hash(
    rows: UInt32[Array, "..."], columns: UInt32[Array, "..."], rate: float
) -> Bool[Array, "..."]:
    """Whether the elements at these rows and columns of a mask are kept; the words (see `mask_words`) broadcast."""
    return _mix(rows ^ columns) >= np.uint32(min(round(rate * 2**32), 2**32 - 1))


def _mix(x):
    # A permutation of the 32-bit words in which every bit of x flips half the bits of the result: "lowbias32" of
    # C. Wellons, https://nullprogram.com/blog/2018/07/31/
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
