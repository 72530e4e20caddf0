"""The static sizes of examples, and the configs that are refused."""

import dataclasses

import numpy as np
import pytest

from glm_jax.corruption.capacity import infilling_capacity, length_weights
from glm_jax.corruption.config import CorruptionConfig
from tests.helpers.typechecker import unchecked


def test_capacity_is_exact_and_bites_as_often_as_it_says():
    config = CorruptionConfig()
    small = dataclasses.replace(config, overflow_prob=0.05)
    capacity = small.capacity(128)
    exact = infilling_capacity(128, 0.15, 3.0, 39, 0.05)
    rng = np.random.default_rng(0)
    weights = length_weights(3.0, 39)
    budget, bites, trials = int(0.15 * 128), 0, 40_000
    draws = rng.choice(np.arange(1, 40), (trials, budget), p=weights)
    for row in draws:
        count = np.searchsorted(np.cumsum(row), budget) + 1
        bites += count > exact.max_spans or row[:count].sum() + count > exact.max_targets
    assert abs(bites / trials - exact.overflow_prob) < 4 * np.sqrt(exact.overflow_prob / trials)
    assert 0 < exact.overflow_prob <= 0.05
    assert capacity.max_spans >= exact.max_spans
    assert config.capacity(512).overflow_prob < 1e-4


@pytest.mark.parametrize(
    ("weights", "slots"), [((0.5, 0, 0.5), 2), ((0.4, 0.3, 0.3), 10), ((1, 1, 1), 3), ((3, 0, 0), 1)]
)
def test_the_smallest_group_that_holds_the_mixture(weights, slots):
    config = CorruptionConfig(*weights, pack_objectives=True)
    shares = np.mean([slot.mixture for slot in config.slots()], axis=0)
    assert len(config.slots()) == slots
    np.testing.assert_allclose(shares, config.mixture)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blank_infilling": 0}, "not all zero"),
        ({"mask_ratio": 1.5}, "mask_ratio=1.5"),
        ({"document": 1, "block_positions": False}, "block_positions"),
        ({"random_position": True}, "max_position"),
        ({"masked_lm": True, "sentence": 1}, "masked_lm"),
        ({"masked_lm": True, "pack_objectives": True}, "set pack_objectives=False"),
        ({"single_span_prob": 2}, "single_span_prob=2"),
        ({"truncation_rate": -0.1}, "truncation_rate=-0.1"),
        ({"document": 0.123, "pack_objectives": True}, "small whole numbers"),
        ({"short_sequence_prob": 0.1, "sentinel_offset": 900, "max_position": 512}, "short_sequence_prob=0"),
    ],
)
def test_contradictory_configs_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CorruptionConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": "0.15"}, "mask_ratio='0.15' must be a number"),
        ({"mask_ratio": True}, "mask_ratio=True must be a number"),
        ({"mask_ratio": float("nan")}, "mask_ratio=nan must be a number"),
        ({"mask_ratio": None}, "mask_ratio=None must be a number"),
        ({"average_span_length": float("inf")}, "average_span_length=inf"),
        ({"average_span_length": 1e6}, "average_span_length=1000000.0 is too large"),
        ({"average_span_length": 0}, "average_span_length=0 must be positive"),
        ({"max_span_length": 3.5}, "max_span_length=3.5 must be an integer"),
        ({"max_span_length": True}, "max_span_length=True must be an integer"),
        ({"max_span_length": 0}, "max_span_length=0 must be at least 1"),
        ({"max_spans": 0}, "max_spans=0 must be at least 1"),
        ({"max_targets": -8}, "max_targets=-8 must be at least 1"),
        ({"max_targets": "64"}, "max_targets='64' must be an integer"),
        ({"context_mask_range": -1}, "context_mask_range=-1 must not be negative"),
        ({"sentinel_offset": -1, "max_position": 9}, "sentinel_offset=-1 must not be negative"),
        ({"task_masks": 1}, "task_masks=1 must be True or False"),
        ({"shuffle_spans": "yes"}, "shuffle_spans='yes' must be True or False"),
        ({"overflow_prob": 2.0}, "overflow_prob=2.0 must lie in 0 … 1"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(options, message):
    with unchecked(), pytest.raises(ValueError, match=message):
        CorruptionConfig(**options)


def test_sizes_that_cannot_hold_a_document_are_refused():
    with pytest.raises(ValueError, match="max_targets=32 must be at least 63"):
        CorruptionConfig(document=1, max_targets=32).capacity(64)
    with pytest.raises(ValueError, match="max_spans=4 must be at least 7: a span per subsequence"):
        CorruptionConfig(document=1, max_spans=4, short_sequence_prob=0.5).capacity(256)
    assert CorruptionConfig(document=1, max_targets=63).capacity(64).max_targets == 64
