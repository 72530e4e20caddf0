"""GLM's attention mask as a rule on integers.

Part A (the first `prefix_length` tokens) attends in both directions. Part B is generated left to right and attends to
all of Part A (Du et al. 2022, section 2.1). One integer per row describes the mask, and segment ids where several texts
share a row. No mask is passed around.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def visible(
    prefix_lengths: Int[Any, "*#shape"],
    query_index: Int[Any, "*#shape"],
    key_index: Int[Any, "*#shape"],
    query_segment: Int[Any, "*#shape"] | None = None,
    key_segment: Int[Any, "*#shape"] | None = None,
) -> Bool[Any, "*#shape"]:
    """Whether the key at `key_index` is visible to the query: key_index < max(prefix_length, query_index + 1).

    The integer arrays broadcast against each other. A prefix of 0 is causal attention, a prefix of T full attention.
    Segments separate several texts, or several answers to one text, in a row: a query sees its own segment, and
    segment 0, which belongs to all. Trained keys that precede a row have negative indices and segment 0: every query
    sees them.
    """
    mask = key_index < jnp.maximum(prefix_lengths, query_index + 1)
    if query_segment is None:
        return mask
    return mask & ((query_segment == key_segment) | (key_segment == 0))


def visible_pairs(
    prefix_lengths: Int[Array, "B"],
    query_index: Int[Array, "#B Q"],
    segment_ids: Int[Array, "B T"] | None,
    shape: tuple[int, int],
    num_keys: int,
    num_trained: int = 0,
) -> Bool[Array, "B 1 Q _"]:
    """`visible` for every query and key; `shape` is (B, Q), and the first `num_trained` keys are trained ones."""
    key_index = jnp.arange(num_keys, dtype=jnp.int32) - num_trained
    segments = ()
    if segment_ids is not None:
        query_segment = jnp.take_along_axis(segment_ids, jnp.broadcast_to(query_index, shape), axis=1)
        key_segment = jnp.pad(segment_ids, ((0, 0), (num_trained, 0))) if num_trained else segment_ids
        segments = query_segment[:, :, None], key_segment[:, None, :]
    mask = visible(prefix_lengths[:, None, None], query_index[:, :, None], key_index[None, None, :], *segments)
    return mask[:, None]
