"""One corrupted example from a row and its spans: Part A, Part B, positions and targets."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from glm_jax.corruption.config import CorruptionConfig
from glm_jax.corruption.random_bits import bernoulli, uniform_int
from glm_jax.corruption.spans import Spans, num_masked_tokens, subsequence_ids, sum_in_parts
from glm_jax.model.batch import Batch
from glm_jax.tokenizers.special import SpecialTokens


class _Columns(NamedTuple):
    """Where spans and subsequences are in Part A."""

    shrink: Int[Array, "S"]  # how many columns fewer Part A has for the span than the row
    masks: Int[Array, "S"]  # the column of the span's mask
    subsequences: Int[Array, "W"]  # the first column of each subsequence


class _Targets(NamedTuple):
    """What is predicted, in the order of Part B."""

    span: Int[Array, "K"]  # number of the span that the target belongs to
    position: Int[Array, "K"]  # the position of the span's mask in Part A
    offset: Int[Array, "K"]  # place inside the span, from 0
    source: Int[Array, "K"]  # the target's column in the raw row
    ids: Int[Array, "K"]
    is_used: Bool[Array, "K"]
    is_end: Bool[Array, "K"]  # the end token, which has no source
    weights: Float[Array, "K"]
    segment_ids: Int[Array, "K"] | None
    count: Int[Array, ""]


def layout_example(
    tokens: Int[Array, "L"],
    length: Int[Array, ""],
    subsequence_starts: Int[Array, "W"],
    spans: Spans,
    loss_mask: Float[Array, "L"],
    mask_id: Int[Array, ""],
    *,
    config: CorruptionConfig,
    special: SpecialTokens,
    bits: UInt32[Array, "R"] | None = None,
) -> Batch:
    """Lay one example out as Part A, then Part B, given its spans (paper, figure 2). Shapes without the batch axis.

    The subsequences follow one another in Part A, each with positions from 0; Part B has the spans of all. T must have
    room for them: `length` + 2 · spans. `bits` (`ablation_bits` of them) feed the random ablations; None when the
    config has none of them.
    """
    row = tokens.size
    columns = _part_a_columns(spans, subsequence_starts)
    targets = _targets(tokens, subsequence_starts, spans, columns, loss_mask, config=config, special=special)
    common = {
        "target_ids": jnp.where(targets.is_used, targets.ids, special.pad),
        "target_weights": targets.weights,
        "target_source": jnp.where(targets.is_used & ~targets.is_end, targets.source, row),
        "objective": jnp.int32(0),
    }
    if config.masked_lm:
        fields = _masked_lm(tokens, length, subsequence_starts, spans, targets, mask_id, special.pad)
    else:
        fields = _part_a_and_b(tokens, length, spans, columns, targets, mask_id, bits, config=config, special=special)
    return Batch(**fields, **common)


def ablation_bits(config: CorruptionConfig, length: int) -> int:
    """How many random words `layout_example` needs for the ablations that are switched on."""
    if not (config.block_mask_prob or config.context_mask_ratio or config.random_position):
        return 0
    return config.capacity(length).max_targets + config.sequence_length(length) + 1


def _part_a_columns(spans, subsequence_starts):
    shrink = jnp.where(spans.lengths > 0, spans.lengths - 1, 0)
    before = spans.starts[:, None] < spans.starts[None, :]
    masks = spans.starts - sum_in_parts(jnp.where(before, shrink[:, None], 0))
    before = spans.starts[:, None] < subsequence_starts[None, :]
    return _Columns(shrink, masks, subsequence_starts - sum_in_parts(jnp.where(before, shrink[:, None], 0)))


def _targets(tokens, subsequence_starts, spans, columns, loss_mask, *, config, special):
    starts, lengths, closed = spans
    index, target = jnp.arange(lengths.size), jnp.arange(config.capacity(tokens.size).max_targets)
    used = lengths > 0
    closed = closed & (not config.masked_lm)
    sizes = jnp.where(used, lengths + closed, 0)
    count = sizes.sum()

    # Each target takes the fields of its span, the last one that begins at the target or earlier.
    begin = sum_in_parts(jnp.where(index[:, None] < index[None, :], sizes[:, None], 0))
    span = sum_in_parts(used[:, None] & (begin[:, None] <= target[None, :])) - 1
    per_span = [begin, starts, lengths, columns.masks - _first_column(columns.subsequences, columns.masks), closed]
    if subsequence_starts.size > 1:
        per_span.append(subsequence_ids(subsequence_starts, starts))
    begin, start, length, position, closed, *segment_ids = jnp.stack(per_span)[:, span]

    offset = target - begin
    source = jnp.clip(start + offset, 0, tokens.size - 1)
    is_used = target < count
    is_end = (offset == length) & (closed > 0)
    return _Targets(
        span=span,
        position=position,
        offset=offset,
        source=source,
        ids=jnp.where(is_end, special.end, tokens[source]),
        is_used=is_used,
        is_end=is_end,
        # Only targets of suffixes and of the masked language model follow `loss_mask`.
        weights=jnp.where(is_used & (closed == 0), loss_mask[source], is_used.astype(jnp.float32)),
        segment_ids=segment_ids[0] if segment_ids else None,
        count=count,
    )


def _masked_lm(tokens, length, subsequence_starts, spans, targets, mask_id, pad):
    """The fields of a masked language model's example: the row itself, with every token of a span masked."""
    column = jnp.arange(tokens.size)
    stops = spans.starts + spans.lengths
    masked = (spans.starts[:, None] <= column[None, :]) & (column[None, :] < stops[:, None])
    in_row = column < length
    segment_ids = None
    if subsequence_starts.size > 1:
        segment_ids = jnp.where(in_row, subsequence_ids(subsequence_starts, column), 0)
    return {
        "tokens": jnp.where(in_row, jnp.where(sum_in_parts(masked) > 0, mask_id, tokens), pad),
        "position_ids": jnp.where(in_row, column - _first_column(subsequence_starts, column), 0),
        "block_position_ids": jnp.zeros_like(column),
        "prefix_lengths": length,
        "target_index": jnp.where(targets.is_used, targets.source, 0),
        "segment_ids": segment_ids,
    }


def _part_a_and_b(tokens, length, spans, columns, targets, mask_id, bits, *, config, special):
    """The fields of a blank infilling example: Part A, Part B and padding, side by side in T columns."""
    column = jnp.arange(config.sequence_length(tokens.size))
    prefix = length - spans.lengths.sum() + (spans.lengths > 0).sum()
    part_a = _part_a(tokens, column, columns, mask_id, config.sentinel_offset)
    part_b = _part_b_inputs(targets, special, config.sentinel_offset)
    position = targets.position
    if config.sentinel_offset is not None:
        position = jnp.full_like(position, config.max_position)
    block_position = targets.offset + 1 if config.block_positions else jnp.ones_like(targets.offset)
    shift = 0
    if bits is not None:
        part_a, part_b, shift = _ablate(
            part_a, part_b, tokens.size, length, prefix, column, columns, targets, bits, config=config, special=special
        )

    in_a = column < prefix
    in_b = ~in_a & (column < prefix + targets.count)
    fields = [part_b, position, block_position, *([] if targets.segment_ids is None else [targets.segment_ids])]
    # One gather for all fields of Part B.
    fields_b = jnp.stack(fields, -1)[jnp.clip(column - prefix, 0, targets.ids.size - 1)]

    def join(a, b, padding):
        return jnp.where(in_a, a, jnp.where(in_b, b, padding)).astype(jnp.int32)

    segment_ids = None
    if targets.segment_ids is not None:
        segment_ids = join(subsequence_ids(columns.subsequences, column), fields_b[:, 3], 0)
    return {
        "tokens": join(part_a, fields_b[:, 0], special.pad),
        "position_ids": join(column - _first_column(columns.subsequences, column) + shift, fields_b[:, 1] + shift, 0),
        "block_position_ids": join(0, fields_b[:, 2], 0),
        "prefix_lengths": prefix,
        "target_index": jnp.where(targets.is_used, prefix + jnp.arange(targets.ids.size), 0),
        "segment_ids": segment_ids,
    }


def _part_a(tokens, column, columns, mask_id, sentinel_offset):
    """Ids of Part A: the row, with one mask in place of each span."""
    removed = sum_in_parts(jnp.where(columns.masks[:, None] < column[None, :], columns.shrink[:, None], 0))
    part_a = tokens[jnp.clip(column + removed, 0, tokens.size - 1)]
    at_mask = columns.masks[:, None] == column[None, :]
    if sentinel_offset is not None:
        span = jnp.arange(columns.masks.size)
        sentinel = jnp.where(span == 0, mask_id, sentinel_offset + 2 * (span - 1))
        mask_id = sum_in_parts(jnp.where(at_mask, sentinel[:, None], 0))
    return jnp.where(sum_in_parts(at_mask) > 0, mask_id, part_a)


def _part_b_inputs(targets, special, sentinel_offset):
    """Ids of Part B: the targets, shifted to the right by one, with a start token at the start of each span."""
    start_id = special.start
    if sentinel_offset is not None:
        start_id = jnp.where(targets.span == 0, special.start, sentinel_offset + 2 * (targets.span - 1) + 1)
    return jnp.where(targets.offset == 0, start_id, jnp.roll(targets.ids, 1))


def _ablate(part_a, part_b, row, length, prefix, column, columns, targets, bits, *, config, special):
    """Part A and Part B with [dBLOCK] in places, and the shift of all positions."""
    num_targets, shift = targets.ids.size, 0
    if config.block_mask_prob:
        hidden = bernoulli(bits[:num_targets], config.block_mask_prob) & (targets.offset > 0)
        part_b = jnp.where(hidden, special.block_mask, part_b)
    if config.context_mask_ratio:
        distance = jnp.abs(columns.masks[:, None] - column[None, :]).min(0)
        near = (distance <= config.context_mask_range) | (column >= prefix - config.context_mask_range)
        near &= (column < prefix) & (distance > 0)
        keys = jnp.where(near, bits[num_targets:-1] >> 8, 2**24).astype(jnp.int32)
        limit = num_masked_tokens(config.context_mask_ratio, length, row)
        chosen = jnp.argsort(jnp.argsort(keys)) < limit
        part_a = jnp.where(near & chosen, special.block_mask, part_a)
    if config.random_position:
        shift = uniform_int(bits[-1], jnp.maximum(config.max_position - (prefix - 1), 1))
    return part_a, part_b, shift


def _first_column(starts, columns):
    """First column of the subsequence that each column belongs to."""
    return jnp.where(starts[:, None] <= columns[None, :], starts[:, None], 0).max(0)
