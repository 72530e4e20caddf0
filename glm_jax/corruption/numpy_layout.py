"""`layout.py` for one example, in NumPy: Part A, Part B, positions and targets."""

from typing import NamedTuple

import numpy as np

from glm_jax.corruption import numpy_random as random


class _PartB(NamedTuple):
    """One entry for each target, in the order of Part B."""

    inputs: list[int]
    targets: list[int]
    source: list[int]  # column of the target in the row; -1 for the end token
    weights: list[float]
    position: list[int]
    block_position: list[int]
    segment_ids: list[int]


def layout_example(example, spans, closed, loss_mask, mask_id, bits, config, special, sizes):
    """The fields of a `Batch`, without the batch axis.

    `spans` are pairs (start, length) in the order of Part B; `closed` says which of them end with the end token.
    `loss_mask` [L + 1] is that of the raw row, then a zero.
    """
    loss_mask = loss_mask[example.origin]
    numbers = np.arange(len(spans))
    mask_ids, start_ids = np.full(len(spans), mask_id), np.full(len(spans), special.start)
    if config.sentinel_offset is not None:
        mask_ids = np.where(numbers == 0, mask_id, config.sentinel_offset + 2 * (numbers - 1))
        start_ids = np.where(numbers == 0, special.start, config.sentinel_offset + 2 * (numbers - 1) + 1)

    # Part A: one mask in place of every span.
    part_a, is_kept = example.text.copy(), np.ones(len(example.text), bool)
    for (start, length), span_mask_id in zip(spans, mask_ids, strict=True):
        part_a[start] = span_mask_id
        is_kept[start + 1 : start + length] = False
    part_a = part_a[is_kept]
    mask_columns = [int(is_kept[:start].sum()) for start, _ in spans]
    starts_a = np.array([is_kept[:start].sum() for start in example.starts])
    segment_ids_a = np.searchsorted(starts_a, np.arange(len(part_a)), side="right")
    positions_a = np.arange(len(part_a)) - starts_a[segment_ids_a - 1]

    # Part B: the spans one after another. Inputs are the targets, shifted to the right by one.
    part_b = _PartB([], [], [], [], [], [], [])
    for (start, length), is_closed, start_id, mask_column in zip(spans, closed, start_ids, mask_columns, strict=True):
        ids, source = example.text[start : start + length].tolist(), list(range(start, start + length))
        weights = loss_mask[start : start + length].tolist()
        if config.masked_lm:
            is_closed = False
        if is_closed:
            ids, source, weights = [*ids, special.end], [*source, -1], [1.0] * (length + 1)
        segment_id = int(segment_ids_a[mask_column])
        part_b.inputs.extend([start_id, *ids[:-1]])
        part_b.targets.extend(ids)
        part_b.source.extend(source)
        part_b.weights.extend(weights)
        part_b.position.extend([int(positions_a[mask_column])] * len(ids))
        part_b.block_position.extend(range(1, len(ids) + 1))
        part_b.segment_ids.extend([segment_id] * len(ids))
    count = len(part_b.targets)
    common = {
        "target_ids": _pad(part_b.targets, sizes.targets, special.pad),
        "target_weights": _pad(part_b.weights, sizes.targets, 0, np.float32),
        "target_source": _pad(
            np.append(example.origin, sizes.row)[np.array(part_b.source, int)], sizes.targets, sizes.row
        ),
    }
    if config.masked_lm:
        return common | _masked_lm(example, spans, part_b, mask_id, special, sizes)

    inputs, position, block_position, segment_ids = (
        np.array(values, np.int32)
        for values in (part_b.inputs, part_b.position, part_b.block_position, part_b.segment_ids)
    )
    if config.sentinel_offset is not None:
        position = np.full(count, config.max_position)
    if config.block_mask_prob:
        hidden = random.bernoulli(bits[:count], config.block_mask_prob) & (block_position > 1)
        inputs[hidden] = special.block_mask
    if config.context_mask_ratio:
        hidden = _context_to_hide(len(example.text), len(part_a), mask_columns, bits[sizes.targets : -1], config)
        part_a[hidden] = special.block_mask
    shift = 0
    if config.random_position:
        shift = random.uniform_int(bits[-1], max(config.max_position - (len(part_a) - 1), 1))
    if not config.block_positions:
        block_position = np.ones(count, int)
    return common | {
        "tokens": _pad(np.concatenate([part_a, inputs]), sizes.columns, special.pad),
        "position_ids": _pad(np.concatenate([positions_a, position]) + shift, sizes.columns),
        "block_position_ids": _pad(np.concatenate([np.zeros_like(part_a), block_position]), sizes.columns),
        "prefix_lengths": np.int32(len(part_a)),
        "target_index": _pad(range(len(part_a), len(part_a) + count), sizes.targets),
        "segment_ids": _pad(np.concatenate([segment_ids_a, segment_ids]), sizes.columns),
    }


def _masked_lm(example, spans, part_b, mask_id, special, sizes):
    """The row itself, with every token of a span masked."""
    tokens = example.text.copy()
    for start, length in spans:
        tokens[start : start + length] = mask_id
    columns = np.arange(len(tokens))
    segment_ids = np.searchsorted(example.starts, columns, side="right")
    return {
        "tokens": _pad(tokens, sizes.row, special.pad),
        "position_ids": _pad(columns - np.array(example.starts)[segment_ids - 1], sizes.row),
        "block_position_ids": np.zeros(sizes.row, np.int32),
        "prefix_lengths": np.int32(len(tokens)),
        "target_index": _pad(part_b.source, sizes.targets),
        "segment_ids": _pad(segment_ids, sizes.row),
    }


def _context_to_hide(length, prefix, mask_columns, bits, config):
    """Columns of Part A next to a mask, or at its end, that become [dBLOCK]: `context_mask_ratio` of the row."""
    columns = np.arange(prefix)
    distance = np.full(prefix, prefix)
    for mask_column in mask_columns:
        distance = np.minimum(distance, abs(columns - mask_column))
    near = (distance <= config.context_mask_range) | (columns >= prefix - config.context_mask_range)
    near = np.flatnonzero(near & (distance > 0))
    order = np.argsort(bits[near] >> 8, kind="stable")
    return near[order[: int(config.context_mask_ratio * length)]]


def _pad(values, size, fill=0, dtype=np.int32):
    padded = np.full(size, fill, dtype)
    padded[: len(values)] = values
    return padded
