"""One corrupted example from a row and its spans: Part A, Part B, positions and targets."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from glm_jax.corruption import spans as spans_lib
from glm_jax.corruption.config import CorruptionConfig
from glm_jax.corruption.spans import Spans, summed
from glm_jax.model.batch import Batch
from glm_jax.tokenizers.special import SpecialTokens


def layout_example(
    tokens: Int[Array, "L"],
    length: Int[Array, ""],
    pieces: Int[Array, "W"],
    spans: Spans,
    loss_mask: Float[Array, "L"],
    mask_id: Int[Array, ""],
    *,
    config: CorruptionConfig,
    special: SpecialTokens,
    bits: UInt32[Array, "R"] | None = None,
) -> Batch:
    """Lay one example out as Part A, then Part B, given its spans (paper, figure 2). Shapes without the batch axis.

    Several `pieces` (their first columns) stand one behind the other in Part A, each with positions from 0; Part B has
    the spans of all. There must be room for them: `length` + 2 · spans in T.
    `bits` (`ablation_bits` of them) feed the random ablations; None when the config has none of them.
    """
    row = tokens.size
    capacity = config.capacity(row)
    column, target = jnp.arange(config.sequence_length(row)), jnp.arange(capacity.max_targets)
    starts, lengths, closed = spans
    used = lengths > 0
    slot = jnp.arange(used.size)
    count, masked = used.sum(), lengths.sum()
    closed = closed & (not config.masked_lm)
    several = pieces.size > 1
    sizes = jnp.where(used, lengths + closed, 0)
    total = sizes.sum()

    # Per span: the column of its mask in Part A, and its first place among the targets.
    shrink = jnp.where(used, lengths - 1, 0)
    before = starts[:, None] < starts[None, :]
    mask_column = starts - summed(jnp.where(before, shrink[:, None], 0))
    begin = summed(jnp.where(slot[:, None] < slot[None, :], sizes[:, None], 0))

    # Per target: its span is the last one that began.
    span = summed(used[:, None] & (begin[:, None] <= target[None, :])) - 1
    piece_columns = pieces - summed(jnp.where(starts[:, None] < pieces[None, :], shrink[:, None], 0))  # in Part A
    per_span = [begin, starts, lengths, mask_column - _opening(piece_columns, mask_column), closed]
    if several:
        per_span.append(spans_lib.piece_of(pieces, starts))
    begin, start, size, position, closed, *segment = jnp.stack(per_span)[:, span]
    live = target < total
    offset = target - begin
    is_end = (offset == size) & (closed > 0)
    source = jnp.clip(start + offset, 0, row - 1)
    target_ids = jnp.where(is_end, special.end, tokens[source])
    weights = jnp.where(live & (closed == 0), loss_mask[source], live.astype(jnp.float32))
    common = {
        "target_ids": jnp.where(live, target_ids, special.pad),
        "target_weights": weights,
        "target_source": jnp.where(live & ~is_end, source, row),
        "objective": jnp.int32(0),
    }

    if config.masked_lm:
        inside = (starts[:, None] <= column[None, :]) & (column[None, :] < (starts + lengths)[:, None])
        in_row = column < length
        return Batch(
            tokens=jnp.where(in_row, jnp.where(summed(inside) > 0, mask_id, tokens), special.pad),
            position_ids=jnp.where(in_row, column - _opening(pieces, column), 0),
            block_position_ids=jnp.zeros_like(column),
            prefix_lengths=length,
            target_index=jnp.where(live, source, 0),
            segment_ids=jnp.where(in_row, spans_lib.piece_of(pieces, column), 0) if several else None,
            **common,
        )

    prefix = length - masked + count
    # Part A: a column's source lies behind by what the masks before it swallowed.
    source_a = column + summed(jnp.where(mask_column[:, None] < column[None, :], shrink[:, None], 0))
    at_mask = mask_column[:, None] == column[None, :]
    part_a = tokens[jnp.clip(source_a, 0, row - 1)]
    mask_ids, start_ids = mask_id, special.start
    if config.sentinel_offset is not None:
        numbered = config.sentinel_offset + 2 * (slot - 1)
        mask_ids = summed(jnp.where(at_mask, jnp.where(slot == 0, mask_id, numbered)[:, None], 0))
        start_ids = jnp.where(span == 0, special.start, config.sentinel_offset + 2 * (span - 1) + 1)
        position = jnp.full_like(position, config.max_position)
    part_a = jnp.where(summed(at_mask) > 0, mask_ids, part_a)

    # Part B: inputs are the targets, one to the right, behind a start token.
    inputs = jnp.where(offset == 0, start_ids, jnp.roll(target_ids, 1))
    block_position = offset + 1 if config.block_positions else jnp.ones_like(offset)
    shift = 0
    if bits is not None:
        if config.block_mask_prob:
            hidden = spans_lib.chance(bits[: target.size], config.block_mask_prob) & (offset > 0)
            inputs = jnp.where(hidden, special.block_mask, inputs)
        if config.context_mask_ratio:
            distance = jnp.abs(mask_column[:, None] - column[None, :]).min(0)
            near = (distance <= config.context_mask_range) | (column >= prefix - config.context_mask_range)
            near &= (column < prefix) & (distance > 0)
            keys = jnp.where(near, bits[target.size : -1] >> 8, 2**24).astype(jnp.int32)
            chosen = jnp.argsort(jnp.argsort(keys)) < spans_lib.budget(config.context_mask_ratio, length, row)
            part_a = jnp.where(near & chosen, special.block_mask, part_a)
        if config.random_position:
            shift = spans_lib.below(bits[-1], jnp.maximum(config.max_position - (prefix - 1), 1))

    in_a = column < prefix
    in_b = ~in_a & (column < prefix + total)
    packed = jnp.stack([inputs, position, block_position, *segment], -1)[jnp.clip(column - prefix, 0, target.size - 1)]

    def lay_out(a, b, padding):
        return jnp.where(in_a, a, jnp.where(in_b, b, padding)).astype(jnp.int32)

    return Batch(
        tokens=lay_out(part_a, packed[:, 0], special.pad),
        position_ids=lay_out(column - _opening(piece_columns, column) + shift, packed[:, 1] + shift, 0),
        block_position_ids=lay_out(0, packed[:, 2], 0),
        prefix_lengths=prefix,
        target_index=jnp.where(live, prefix + target, 0),
        segment_ids=lay_out(spans_lib.piece_of(piece_columns, column), packed[:, 3], 0) if several else None,
        **common,
    )


def ablation_bits(config: CorruptionConfig, length: int) -> int:
    """How many random words `layout_example` needs for the ablations that are switched on."""
    if not (config.block_mask_prob or config.context_mask_ratio or config.random_position):
        return 0
    return config.capacity(length).max_targets + config.sequence_length(length) + 1


def _opening(starts, columns):
    """First column of the piece that each column belongs to."""
    return jnp.where(starts[:, None] <= columns[None, :], starts[:, None], 0).max(0)
