"""Short sequences: a row cut into subsequences that share the row but do not attend to each other.

The original trains on some batches of short windows. Here a row keeps its static shape: its text is cut, and every
subsequence becomes an example with spans and positions of its own, so that no part of the row is padding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from glm_jax.corruption.config import MIN_SUBSEQUENCE_LENGTH
from glm_jax.corruption.random_bits import uniform_int
from glm_jax.corruption.spans import UNUSED


class Subsequences(NamedTuple):
    """A row cut into subsequences, each of which starts with a [CLS]."""

    tokens: Int[Array, "L"]
    length: Int[Array, ""]
    starts: Int[Array, "W"]  # first column of each subsequence; UNUSED where there are fewer
    origin: Int[Array, "L"]  # the column of each token in the raw row; L for an inserted [CLS]


def whole_row(tokens: Int[Array, "L"], length: Int[Array, ""]) -> Subsequences:
    """The row as its only subsequence."""
    return Subsequences(tokens, length, jnp.zeros(1, jnp.int32), jnp.arange(tokens.size))


def split_row(
    bits: UInt32[Array, ""],
    tokens: Int[Array, "L"],
    length: Int[Array, ""],
    ends_text: Bool[Array, "L"],
    enabled: Bool[Array, ""],
    *,
    cls: int,
    max_subsequences: int,
) -> Subsequences:
    """Cuts at every s-th token, s uniform in 32 … L-2, or at the last end of a sentence less than s/2 before it.

    `ends_text` marks the tokens that end a sentence or a document. Tokens that the inserted [CLS] push over the end of
    the row are lost. The row stays whole if it is too short, or if `enabled` is False.
    """
    row = tokens.size
    index = jnp.arange(row)
    size = MIN_SUBSEQUENCE_LENGTH + uniform_int(bits, max(row - MIN_SUBSEQUENCE_LENGTH - 1, 1))
    number = jnp.arange(1, max_subsequences)

    # Where each subsequence starts in the raw row, and whether a [CLS] is inserted there.
    nominal = (tokens[0] == cls) + size * number
    after_text = jnp.roll(jax.lax.cummax(jnp.where(ends_text, index + 1, 0)), 1).at[0].set(0)
    snapped = after_text[jnp.clip(nominal, 0, row - 1)]
    starts = jnp.where(snapped > nominal - size // 2, snapped, nominal)
    long_enough = starts + MIN_SUBSEQUENCE_LENGTH <= jnp.minimum(length, row - number)
    used = enabled & (nominal < row) & long_enough
    inserts = jnp.where(used, (tokens[jnp.clip(starts, 0, row - 1)] != cls).astype(jnp.int32), 0)
    inserted_before = jnp.where(number[:, None] < number[None, :], inserts[:, None], 0).sum(0)
    starts = jnp.where(used, starts + inserted_before, UNUSED)

    # Every token moves right by the number of [CLS] inserted before it.
    started = starts[:, None] <= index[None, :]
    source = index - jnp.where(started, inserts[:, None], 0).sum(0)
    is_inserted = ((starts[:, None] == index[None, :]) & (inserts[:, None] > 0)).any(0)
    source = jnp.clip(source, 0, row - 1)
    return Subsequences(
        tokens=jnp.where(is_inserted, cls, tokens[source]),
        length=jnp.minimum(length + inserts.sum(), row),
        starts=jnp.concatenate([jnp.zeros(1, starts.dtype), starts]),
        origin=jnp.where(is_inserted, row, source),
    )
