"""The rows of the language models that GLM is compared with."""

import dataclasses

import jax
import numpy as np
import pytest

from glm_jax.corruption.baselines import BASELINES
from glm_jax.corruption.config import CorruptionConfig
from glm_jax.corruption.corrupt import corrupt
from glm_jax.corruption.corrupt_numpy import corrupt_numpy
from tests.helpers.corruption_records import SPECIAL

LENGTH, COUNT = 40, 600


def rows(count=COUNT, seed=0):
    """Rows of 20 tokens and more, all different in a row, and some that are almost empty."""
    rng = np.random.default_rng(seed)
    tokens = np.stack([rng.permutation(np.arange(20, 20 + LENGTH)) for _ in range(count)]).astype(np.int32)
    tokens[:, 0] = SPECIAL.cls
    lengths = rng.integers(20, LENGTH + 1, count)
    lengths[:4] = 0, 1, 2, 3
    for row, length in zip(tokens, lengths, strict=True):
        row[length:] = SPECIAL.pad
    return tokens, lengths, np.arange(count, dtype=np.uint32)


@pytest.fixture(scope="module", params=BASELINES)
def baseline(request):
    return request.param


@pytest.fixture(scope="module")
def batch(baseline):
    """An example of each row."""
    return corrupt_numpy(3, *rows(), config=CorruptionConfig(baseline=baseline), special=SPECIAL)


def used(batch, row):
    """(index, id, source, weight) of the targets of a row that count."""
    weight = batch.target_weights[row]
    counts = weight > 0
    fields = batch.target_index, batch.target_ids, batch.target_source
    return (*(field[row][counts] for field in fields), weight[counts])


def test_the_device_makes_the_same_examples(baseline, batch):
    loss_mask = (np.random.default_rng(1).random((COUNT, LENGTH)) < 0.7).astype(np.float32)
    for mask in (None, loss_mask):
        options = {"loss_mask": mask, "config": CorruptionConfig(baseline=baseline), "special": SPECIAL}
        ours = corrupt_numpy(3, *rows(), **options)
        theirs = jax.device_get(corrupt(jax.random.key(3), *rows(), **options))
        for field in dataclasses.fields(theirs):
            a, b = getattr(ours, field.name), getattr(theirs, field.name)
            if field.name == "slots" or b is None:
                assert a == b
                continue
            assert (a.dtype, a.shape) == (b.dtype, b.shape), field.name
            np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=field.name)  # weights m / n may round differently


def test_no_target_is_seen_where_it_is_predicted(baseline, batch):
    """What the position of a target sees holds neither the target nor, as a permutation has no token twice, its id."""
    for row in range(COUNT):
        prefix = batch.prefix_lengths[row]
        for index, token, *_ in zip(*used(batch, row), strict=True):
            seen = batch.tokens[row, : max(prefix, index + 1)]
            assert token == SPECIAL.end or token not in seen


def test_targets_are_the_text(baseline, batch):
    tokens, lengths, _ = rows()
    for row in range(COUNT):
        _index, ids, source, _ = used(batch, row)
        text = source < LENGTH
        np.testing.assert_array_equal(ids[text], tokens[row][source[text]])
        assert len(set(source[text].tolist())) == text.sum()
        assert (source[text] > 0).all()
        assert (ids[~text] == SPECIAL.end).all()
        expected = {
            "causal_lm": lengths[row] - 1,
            "fill_in_the_middle": lengths[row] - 1,
            "prefix_lm": lengths[row] - batch.prefix_lengths[row],
        }
        if baseline in expected:
            assert text.sum() == max(expected[baseline], 0)


def test_positions_are_those_of_the_row(batch):
    for row in range(4, COUNT):
        length = int((batch.tokens[row] != SPECIAL.pad).sum())
        np.testing.assert_array_equal(batch.position_ids[row, :length], np.arange(length))
    assert not batch.block_position_ids.any()


def test_a_prefix_ends_anywhere():
    config = CorruptionConfig(baseline="prefix_lm")
    tokens, lengths, index = rows(4000)
    lengths[:] = 20
    prefix = corrupt_numpy(3, tokens, lengths, index, config=config, special=SPECIAL).prefix_lengths
    share = np.bincount(prefix, minlength=21) / len(prefix)
    assert share[0] == share[20] == 0
    np.testing.assert_allclose(share[1:20], 1 / 19, atol=0.015)


def test_the_middle_stands_at_the_end_of_half_of_the_rows():
    config = CorruptionConfig(baseline="fill_in_the_middle")
    tokens, lengths, index = rows(2000)
    batch = corrupt_numpy(3, tokens, lengths, index, config=config, special=SPECIAL)
    middles = []
    for row in range(4, 2000):
        length, ids = lengths[row], batch.tokens[row].tolist()
        if SPECIAL.mask not in ids:
            assert ids[:length] == tokens[row, :length].tolist()
            continue
        ids = ids[: length + 3]
        mask, start = ids.index(SPECIAL.mask), ids.index(SPECIAL.start)
        prefix, suffix, middle = ids[:mask], ids[mask + 1 : start], ids[start + 1 : -1]
        assert ids[-1] == SPECIAL.end
        assert middle
        assert prefix + middle + suffix == tokens[row, :length].tolist()
        predicted, target_ids, *_ = used(batch, row)
        # The mask and the start token are placed, not written; the end is written.
        assert {mask - 1, start - 1}.isdisjoint(predicted.tolist())
        assert target_ids[-1] == SPECIAL.end
        middles.append(len(middle) / (length - 1))
    assert abs(len(middles) / 1996 - 0.5) < 0.04
    assert 0.3 < np.mean(middles) < 0.45  # two uniform cuts: a third, and a token more


def test_the_weights_of_masked_diffusion_count_every_token_once():
    config = CorruptionConfig(baseline="masked_diffusion")
    tokens, lengths, index = rows(4000)
    lengths[:] = 20
    batch = corrupt_numpy(3, tokens, lengths, index, config=config, special=SPECIAL)
    count = (batch.target_weights > 0).sum(1)
    np.testing.assert_allclose(batch.target_weights.sum(1), 19, rtol=1e-5)
    np.testing.assert_allclose(np.bincount(count, minlength=20)[1:20] / 4000, 1 / 19, atol=0.015)  # uniform
    masked = batch.tokens == SPECIAL.mask
    np.testing.assert_array_equal(masked.sum(1), count)
    np.testing.assert_allclose(masked[:, 1:20].mean(0), (20 / 2) / 19, atol=0.04)  # every column alike
    for row in range(50):
        np.testing.assert_array_equal(np.flatnonzero(masked[row]), used(batch, row)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "causal"}, "unknown baseline 'causal'; nearest: causal_lm"),
        ({"baseline": "causal_lm", "document": 0.5}, "draws no spans: leave out document=0.5"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CorruptionConfig(**changes)
