"""Short sequences: a row cut into pieces that share its block and do not see each other.

The original trains on some batches of short windows. Here a row keeps its static shape: its text is cut, every piece
becomes an example with blanks and positions of its own, and nothing of the block is padding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from glm_jax.corruption.spans import UNUSED, below

SHORTEST = 32  # tokens of a piece, as in the original: cuts fall on every 32nd to every L-2nd token


class Subsequences(NamedTuple):
    """A row in pieces, each behind a [CLS]."""

    tokens: Int[Array, "L"]
    length: Int[Array, ""]
    starts: Int[Array, "W"]  # first column of each piece; UNUSED where there are fewer
    origin: Int[Array, "L"]  # where each token stood in the raw row; L for a [CLS] that was put in


def max_subsequences(length: int) -> int:
    """W for rows of `length` tokens."""
    return max((length - 2) // SHORTEST, 1)


def whole_row(tokens: Int[Array, "L"], length: Int[Array, ""]) -> Subsequences:
    """The row as its only piece."""
    return Subsequences(tokens, length, jnp.zeros(1, jnp.int32), jnp.arange(tokens.size))


def split_row(
    bits: UInt32[Array, ""],
    tokens: Int[Array, "L"],
    length: Int[Array, ""],
    ends_text: Bool[Array, "L"],
    wanted: Bool[Array, ""],
    *,
    cls: int,
) -> Subsequences:
    """Cuts at every s-th token, s uniform in 32 … L-2, or at the last end of a sentence less than s/2 before it.

    `ends_text` marks the tokens that end a sentence or a document. What the inserted [CLS] push over the end of the row
    is lost. Not `wanted`, or too short to be cut: the whole row.
    """
    row = tokens.size
    index = jnp.arange(row)
    size = SHORTEST + below(bits, max(row - SHORTEST - 1, 1))
    number = jnp.arange(1, max_subsequences(row))
    nominal = (tokens[0] == cls) + size * number
    after_text = jnp.roll(jax.lax.cummax(jnp.where(ends_text, index + 1, 0)), 1).at[0].set(0)
    snapped = after_text[jnp.clip(nominal, 0, row - 1)]
    starts = jnp.where(snapped > nominal - size // 2, snapped, nominal)
    used = wanted & (nominal < row) & (starts + SHORTEST <= jnp.minimum(length, row - number))
    opens = jnp.where(used, (tokens[jnp.clip(starts, 0, row - 1)] != cls).astype(jnp.int32), 0)
    before = jnp.where(number[:, None] < number[None, :], opens[:, None], 0).sum(0)
    starts = jnp.where(used, starts + before, UNUSED)

    begun = starts[:, None] <= index[None, :]
    source = index - jnp.where(begun, opens[:, None], 0).sum(0)
    put_in = ((starts[:, None] == index[None, :]) & (opens[:, None] > 0)).any(0)
    source = jnp.clip(source, 0, row - 1)
    return Subsequences(
        tokens=jnp.where(put_in, cls, tokens[source]),
        length=jnp.minimum(length + opens.sum(), row),
        starts=jnp.concatenate([jnp.zeros(1, starts.dtype), starts]),
        origin=jnp.where(put_in, row, source),
    )
