"""The one structure that passes from the corruption to the model and the loss."""

from typing import Any

import flax.struct

Leaf = Any  # a pytree is mapped over, so its leaves are not always arrays: shapes stand beside each field


@flax.struct.dataclass
class Batch:
    """Examples ready for the model: Part A, then Part B, then padding (paper, section 2.1).

    Lengths are explicit: padding is what lies behind `prefix_lengths` + the used targets, never a token id.
    Only Part B is predicted, so targets are gathered to a static width K; unused slots have weight 0 and index 0.
    """

    tokens: Leaf  # int32 [B T]
    position_ids: Leaf  # int32 [B T], where the token, or its blank, stands in Part A
    block_position_ids: Leaf  # int32 [B T], 0 in Part A; 1, 2, … inside a blank
    prefix_lengths: Leaf  # int32 [B], length of Part A
    target_index: Leaf  # int32 [B K], the column of `tokens` whose output predicts the target
    target_ids: Leaf  # int32 [B K]
    target_weights: Leaf  # float32 [B K]
    target_source: Leaf  # int32 [B K], where the target stood in the raw row; L for an end token
    objective: Leaf  # int32 [B], index into `corruption.OBJECTIVES`
    # int32 [B T], which of several texts a token belongs to (from 1; 0: to all of them); None: there is one a row
    segment_ids: Leaf = None
    # No Part A is longer. Known when the step is compiled, unlike `prefix_lengths`; None: it may fill the row
    longest_prefix: int | None = flax.struct.field(pytree_node=False, default=None)
