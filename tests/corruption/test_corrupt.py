"""Properties of corrupted examples, whatever the objective."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.corruption.capacity import spans_for_truncation_rate
from glm_jax.corruption.config import CorruptionConfig
from glm_jax.corruption.corrupt import corrupt
from tests.helpers.corrupted_rows import decode, sample, text_rows
from tests.helpers.corruption_records import SENTENCE_END, SPECIAL


def test_documents_of_a_row_share_the_spans():
    """Several documents: no span crosses one, shorter ones get at most 15 %, [CLS] and [EOS] stay."""
    rng = np.random.default_rng(1)
    tokens = text_rows(600, 256, seed=2)
    cuts = rng.integers(20, 230, (600, 2))
    for row, at in zip(tokens, cuts, strict=True):
        for cut in at:
            row[cut], row[cut + 1] = SPECIAL.eos, SPECIAL.cls
    batch, _ = sample(tokens)
    shares = []
    for i, text in enumerate(tokens):
        ends = np.flatnonzero(text == SPECIAL.eos)
        document = np.searchsorted(ends, np.arange(256))
        taken = np.zeros(256, bool)
        for start, n in decode(batch, i):
            span = np.arange(start, start + n - 1)
            assert len(set(document[span])) == 1
            assert not np.isin(text[span], (SPECIAL.cls, SPECIAL.eos)).any()
            assert not taken[max(start - 1, 0) : start + n].any()  # a free token between neighbours
            taken[span] = True
        sizes = np.array(
            [(document == d).sum() - 1 - (text[document == d][0] == SPECIAL.cls) for d in range(len(ends))]
        )
        share = np.array([taken[document == d].sum() for d in range(len(ends))])
        for d in range(len(ends)):
            if d != np.flatnonzero(sizes == sizes.max())[0]:
                assert share[d] <= int(0.15 * sizes[d])
        shares.append(share.sum())
    assert np.mean(shares) > 0.14 * 256


@pytest.mark.thorough
def test_rows_with_too_many_spans_are_truncated():
    """T is what most rows need; as much text is lost as the config allows at most, and no other row changes."""
    rows, length = text_rows(4000, 128), 128
    whole, roomy = sample(rows, truncation_rate=0.0)
    batch, config = sample(rows)
    width = config.sequence_length(length)
    assert batch.tokens.shape[1] == width == 144 < roomy.sequence_length(length)
    spans = (whole.block_position_ids == 1).sum(1)
    fits = length + 2 * spans <= width
    np.testing.assert_array_equal(batch.tokens[fits], whole.tokens[fits][:, :width])
    np.testing.assert_array_equal(batch.target_source[fits], whole.target_source[fits])

    masked, blanks = (batch.target_source < length).sum(1), (batch.block_position_ids == 1).sum(1)
    kept = batch.prefix_lengths - blanks + masked
    assert (kept[fits] == length).all()
    assert (kept[~fits] < length).all()
    assert (kept + 2 * blanks <= width).all()
    assert ((length - kept)[~fits] == 2 * spans[~fits] - (width - length)).all()
    for i in np.flatnonzero(~fits)[:50]:
        text = np.setdiff1d(np.arange(kept[i]), batch.target_source[i])
        is_mask = batch.tokens[i, : batch.prefix_lengths[i]] == SPECIAL.mask
        np.testing.assert_array_equal(batch.tokens[i, : batch.prefix_lengths[i]][~is_mask], rows[i, text])
    lost = (length - kept).mean() / length
    assert 0 < lost < config.truncation_rate
    rates = {rate: spans_for_truncation_rate(length, 0.15, 3.0, 39, rate) for rate in (0.0, 2e-3, 5e-3, 0.5)}
    assert rates == {0.0: 19, 2e-3: 8, 5e-3: 7, 0.5: 1}


@pytest.mark.parametrize(
    "options", [{"max_spans": 16}, {"sentence": 1.0}, {"short_sequence_prob": 0.5}, {"truncation_rate": 0}]
)
def test_rows_are_whole_where_that_is_wanted_or_their_blanks_follow_from_the_text(options):
    config = CorruptionConfig(**options)
    assert config.sequence_length(128) == 128 + 2 * config.capacity(128).max_spans


@pytest.mark.thorough
def test_examples_depend_on_their_index_alone():
    """Batch size, neighbours and place in the batch change nothing; another index or seed does."""
    config = CorruptionConfig(blank_infilling=1, sentence=1, document=1, task_masks=True, short_sequence_prob=0.3)
    tokens = text_rows(12, 96, sentence_prob=0.1)
    lengths, ends = np.full(12, 96, np.int32), np.arange(1000) == SENTENCE_END
    index = np.arange(100, 112, dtype=np.uint32)
    run = functools.partial(corrupt, config=config, special=SPECIAL)
    whole = run(jax.random.key(7), tokens, lengths, index, ends)
    for pick in ([3], [11, 0, 5]):
        part = run(jax.random.key(7), tokens[pick], lengths[pick], index[pick], ends)
        jax.tree.map(lambda a, b, p=pick: np.testing.assert_array_equal(a[np.array(p)], b), whole, part)
    other = run(jax.random.key(7), tokens, lengths, index + np.uint32(1), ends)
    assert (np.asarray(other.tokens) != np.asarray(whole.tokens)).any(1).sum() >= 11
    assert len(set(np.asarray(whole.objective))) == 3


def test_packed_examples_are_those_of_rows_of_their_own():
    """Each has the columns and targets of its own objective; nothing else tells it from an example with its own row."""
    config = CorruptionConfig(1, 0, 2, pack_objectives=True, task_masks=True)
    slots = config.slots()
    assert [slot.mixture for slot in slots] == [(1, 0, 0), (0, 0, 1), (0, 0, 1)]
    tokens, index = text_rows(12, 96), np.arange(30, 42, dtype=np.uint32)
    lengths = np.full(12, 96, np.int32)
    run = functools.partial(corrupt, jax.random.key(7), special=SPECIAL)
    batch = jax.device_get(run(tokens, lengths, index, config=config))
    assert batch.tokens.shape == (4, config.sequence_length(96)) == (4, (96 + 2 * 8) + 2 * (96 + 2 * 4))
    assert batch.target_ids.shape == (4, sum(slot.targets for slot in batch.slots))
    assert [slot.longest_prefix for slot in batch.slots] == [96, 49, 49]
    for number, (part, slot) in enumerate(zip(batch.unpack(), slots, strict=True)):
        alone = run(tokens[number::3], lengths[number::3], index[number::3], config=slot)
        jax.tree.map(np.testing.assert_array_equal, part, jax.device_get(alone))
        assert (part.prefix_lengths <= part.slots[0].longest_prefix).all()
    # Where a target stands in the row, the row has the token that precedes it.
    np.testing.assert_array_equal(batch.target_objective()[:, [0, -1]], [[0, 2]] * 4)
    with pytest.raises(ValueError, match="10 examples do not fill rows of 3"):
        run(tokens[:10], lengths[:10], index[:10], config=config)


@pytest.mark.parametrize("mixture", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)])
def test_every_length_from_nothing_up_gives_a_valid_example(mixture):
    """Rows of 0 … 24 tokens, without a [CLS], all [EOS], full of sentence ends: invariants hold."""
    config = CorruptionConfig(
        *mixture, task_masks=True, max_spans=12, max_targets=24, short_sequence_prob=0.2 if mixture == (1, 1, 1) else 0
    )
    row = 24
    rng = np.random.default_rng(5)
    rows = rng.choice([0, 1, 10, 21, 22, 23], (500, row), p=[0.1, 0.1, 0.15, 0.25, 0.2, 0.2]).astype(np.int32)
    rows[:25, 0], rows[25:50] = 1, 0
    lengths = (np.arange(500) % (row + 1)).astype(np.int32)
    batch, _ = sample(rows, lengths, **dataclasses.asdict(config))
    width = config.sequence_length(row)
    live = (batch.target_weights > 0).sum(1)
    assert batch.tokens.shape == (500, width)
    assert ((batch.prefix_lengths >= 0) & (batch.prefix_lengths + live <= width)).all()
    assert batch.prefix_lengths.max() <= batch.slots[0].longest_prefix == config.longest_prefix(row)
    for i in range(500):
        raw = rows[i, : lengths[i]]
        prefix, n = batch.prefix_lengths[i], live[i]
        spans = decode(batch, i)
        assert sum(size for _, size in spans) == n
        source = batch.target_source[i, :n]
        inside = source < row
        assert (raw[source[inside]] == batch.target_ids[i, :n][inside]).all()
        assert len(set(source[inside])) == inside.sum()  # no token is predicted twice
        kept = np.setdiff1d(np.arange(lengths[i]), source[inside])
        if not config.short_sequence_prob:  # Part A is the rest of the row, and one mask for each span
            is_mask = np.isin(np.arange(prefix), batch.position_ids[i, prefix : prefix + n])
            np.testing.assert_array_equal(batch.tokens[i, :prefix][~is_mask], raw[kept])
            assert is_mask.sum() == len(spans)
        assert (batch.tokens[i, prefix + n :] == SPECIAL.pad).all()
        assert (batch.position_ids[i, prefix + n :] == 0).all()
        np.testing.assert_array_equal(batch.position_ids[i, :prefix], np.arange(prefix))


def test_missing_sentence_ends_are_refused():
    with pytest.raises(ValueError, match="sentence_ends"):
        corrupt(
            jax.random.key(0), jnp.zeros((1, 32), jnp.int32), jnp.full(1, 32), jnp.zeros(1, jnp.uint32),
            config=CorruptionConfig(sentence=1), special=SPECIAL,
        )  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("mixture", [{}, {"sentence": 0.6, "document": 0.4}])
def test_no_array_of_blanks_by_columns_is_held(mixture):
    """36 blanks of 568 columns would be 40 times the row; XLA computes what is summed over them on the way."""
    rows = jax.ShapeDtypeStruct((16, 512), np.int32), jax.ShapeDtypeStruct((16,), np.int32)
    index, ends = jax.ShapeDtypeStruct((16,), np.uint32), jax.ShapeDtypeStruct((1000,), bool)
    run = functools.partial(corrupt, config=CorruptionConfig(**mixture), special=SPECIAL)
    compiled = jax.jit(run).lower(jax.random.key(0), *rows, index, ends).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 20 * 16 * 512 * 4
