"""The layout of an example against the records of the original, given its spans."""

import functools

import jax
import numpy as np
import pytest

from glm_jax.corruption.config import CorruptionConfig
from glm_jax.corruption.layout import ablation_bits, layout_example
from glm_jax.corruption.spans import UNUSED, Spans
from tests.helpers.corruption_records import SENTINELS, SPECIAL, load

ROW = 200
WIDE = {"max_spans": 68, "max_targets": ROW}
RECORDS = {
    "bert": {},
    "sentence": {"blank_infilling": 0, "sentence": 1, "task_masks": True},
    "document": {"blank_infilling": 0, "document": 1, "task_masks": True},
    "document_prompt": {"blank_infilling": 0, "document": 1, "task_masks": True},
    "mixed_10B": {"sentence": 0.3, "document": 0.3, "task_masks": True, "block_mask_prob": 0.1},
    "random_position": {"random_position": True, "max_position": 128},
    "sentinel": {"sentinel_offset": SENTINELS, "max_position": 128},
    "no_shuffle": {"shuffle_spans": False},
    "no_block_position": {"block_positions": False},
    "context_mask": {"context_mask_ratio": 0.1},
    "masked_lm": {"masked_lm": True},
    "single_span": {"single_span_prob": 1.0},
    "avg_len_6": {"average_span_length": 6.0},
}


def _implied_bits(record, config):
    """Random words that make the ablations choose what the original chose."""
    length, targets = config.sequence_length(ROW), config.capacity(ROW).max_targets
    bits = np.full(ablation_bits(config, ROW), 2**32 - 1, np.uint32)
    hidden = record.text == SPECIAL.block_mask
    bits[: len(hidden) - record.prefix][hidden[record.prefix :]] = 0
    bits[targets : targets + record.prefix][hidden[: record.prefix]] = 0
    if config.random_position:
        bound = config.max_position + 1 - record.prefix
        bits[-1] = -(-int(record.position[0]) * 2**32 // bound)
    assert bits.size in (0, targets + length + 1)
    return bits


@pytest.mark.parametrize("name", RECORDS)
def test_assembly_equals_the_original(name, fidelity):
    config = CorruptionConfig(**RECORDS[name], **WIDE)
    records = load(name)
    assert len(records) >= 30
    slots, length, targets = 68, config.sequence_length(ROW), config.capacity(ROW).max_targets

    def padded(values, size, fill=0):
        return np.concatenate([values, np.full(size - len(values), fill)]).astype(np.int32)

    tokens = np.stack([padded(r.raw, ROW) for r in records])
    spans = Spans(
        np.stack([padded(r.starts, slots, UNUSED) for r in records]),
        np.stack([padded(r.lengths, slots) for r in records]),
        np.stack([np.full(slots, r.closed) for r in records]),
    )
    ones = [np.ones(len(r.raw)) if r.raw_loss_mask is None else r.raw_loss_mask for r in records]
    loss_mask = np.stack([padded(mask, ROW) for mask in ones]).astype(np.float32)
    # blank infilling and sentences train on all of Part B, prompt or not: only suffixes and masked_lm read loss_mask
    mask_ids = {0: SPECIAL.mask, 1: SPECIAL.sentence_mask, 2: SPECIAL.generation_mask}
    mask_id = np.array([mask_ids[r.mode] for r in records], np.int32)
    bits = np.stack([_implied_bits(r, config) for r in records]) if ablation_bits(config, ROW) else None
    lengths = np.array([len(r.raw) for r in records], np.int32)
    one = functools.partial(layout_example, config=config, special=SPECIAL)

    def with_bits(tokens, length, spans, loss_mask, mask_id, bits):
        return one(tokens, length, jax.numpy.zeros(1, int), spans, loss_mask, mask_id, bits=bits)

    axes = (0, 0, 0, 0, 0, None if bits is None else 0)
    batch = jax.device_get(jax.jit(jax.vmap(with_bits, axes))(tokens, lengths, spans, loss_mask, mask_id, bits))

    for i, r in enumerate(records):
        used = len(r.text)
        np.testing.assert_array_equal(batch.tokens[i], padded(r.text, length), err_msg=f"tokens of row {i}")
        np.testing.assert_array_equal(batch.position_ids[i], padded(r.position, length), err_msg=f"position of row {i}")
        np.testing.assert_array_equal(batch.block_position_ids[i], padded(r.block_position, length))
        assert batch.prefix_lengths[i] == r.prefix
        # targets: the original keeps them beside the tokens, with a loss mask; ours are gathered
        weights, ids = np.zeros(length), np.zeros(length, int)
        live = np.arange(targets) < r.lengths.sum() + (len(r.lengths) if r.closed else 0)
        weights[batch.target_index[i][live]] = batch.target_weights[i][live]
        ids[batch.target_index[i][live]] = batch.target_ids[i][live]
        np.testing.assert_array_equal(weights, padded(r.loss_mask, length))
        predicted = np.zeros(length, bool)
        predicted[:used] = np.arange(used) >= r.prefix if name != "masked_lm" else r.loss_mask > 0
        np.testing.assert_array_equal(ids[predicted], padded(r.target, length)[predicted])
        assert not batch.target_weights[i][~live].any()
        # every target knows where it stood in the raw row
        source = batch.target_source[i][live]
        np.testing.assert_array_equal(r.raw[source[source < ROW]], batch.target_ids[i][live][source < ROW])
    what = "tokens, positions, prefixes, targets and loss masks, given the blanks"
    fidelity.compared(f"corruption_{name}.npz", what)


def test_records_are_read_right():
    """The rows implied by the outputs are the rows that the original was given."""
    for name in ("bert", "sentence", "document", "document_prompt", "random_position", "sentinel", "masked_lm"):
        assert all(r.raw_loss_mask is not None for r in load(name)), name
