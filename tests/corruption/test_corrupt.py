"""Corruption against the original's records, against its sampler's statistics, and at the edges."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.corruption import spans as spans_lib
from glm_jax.corruption.config import CorruptionConfig
from glm_jax.corruption.corrupt import corrupt
from glm_jax.corruption.layout import ablation_bits, layout_example
from glm_jax.corruption.spans import Spans
from tests.helpers.corruption_records import GOLDEN, SENTENCE_END, SENTINELS, SPECIAL, load

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
        np.stack([padded(r.starts, slots, spans_lib.UNUSED) for r in records]),
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


# ---------------------------------------------------------------------------- the sampler's laws


def _rows(count, length, sentence_prob=None, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20, 1000, (count, length)).astype(np.int32)
    if sentence_prob:
        tokens[rng.random((count, length)) < sentence_prob] = SENTENCE_END
    tokens[:, 0], tokens[:, -1] = SPECIAL.cls, SPECIAL.eos
    return tokens


def _sample(tokens, lengths=None, seed=0, chunk=2000, **config):
    config = CorruptionConfig(**config)
    lengths = np.full(len(tokens), tokens.shape[1]) if lengths is None else lengths
    ends = np.zeros(1000, bool)
    ends[SENTENCE_END] = True
    parts = [
        jax.device_get(
            corrupt(
                jax.random.key(seed),
                tokens[i : i + chunk],
                lengths[i : i + chunk].astype(np.int32),
                np.arange(i, i + len(tokens[i : i + chunk]), dtype=np.uint32),
                ends,
                config=config,
                special=SPECIAL,
            )
        )
        for i in range(0, len(tokens), chunk)
    ]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts), config


def _decode(batch, i):
    """Spans of example i in the order of Part B as (start, length), read off the batch alone."""
    prefix, live = batch.prefix_lengths[i], batch.target_weights[i] > 0
    columns = batch.target_index[i][live]
    block, source = batch.block_position_ids[i][columns], batch.target_source[i][live]
    starts = np.flatnonzero(block == 1)
    sizes = np.diff([*starts, live.sum()])
    assert (columns == prefix + np.arange(live.sum())).all()
    return [(int(source[a]), int(n)) for a, n in zip(starts, sizes, strict=True)]


def _assert_same_law(fidelity, what, ours, original, minimum=40):
    """Two-sample chi-square of histograms; bins with few counts are merged into their neighbours."""
    ours, original = np.asarray(ours, float), np.asarray(original, float)
    a, b, x, y = [], [], 0.0, 0.0
    for p, q in zip(ours, original, strict=True):
        x, y = x + p, y + q
        if x + y >= minimum:
            a, b, x, y = [*a, x], [*b, y], 0.0, 0.0
    a[-1], b[-1] = a[-1] + x, b[-1] + y
    a, b = np.array(a), np.array(b)
    k = np.sqrt(b.sum() / a.sum())
    statistic, freedom = (((k * a - b / k) ** 2) / (a + b)).sum(), len(a) - 1
    limit = freedom + 4.0 * np.sqrt(2 * freedom) + 4  # beyond four standard deviations
    fidelity.within(STATS, f"{what}, chi-square / its limit at four standard deviations", statistic / limit, 1)


N, STATS = 20_000, "corruption_stats_20k.npz"


@pytest.fixture(scope="module")
def stats():
    return np.load(GOLDEN / STATS)


def test_blank_infilling_follows_the_original_law(stats, fidelity):
    batch, config = _sample(_rows(N, 512), truncation_rate=0.0)  # the original keeps every token
    capacity = config.capacity(512)
    spans = [_decode(batch, i) for i in range(N)]
    lengths = np.concatenate([[n - 1 for _, n in row] for row in spans])  # the end token counts in n
    counts = np.array([len(row) for row in spans])
    _assert_same_law(
        fidelity, "blank infilling: lengths", np.bincount(lengths, minlength=41), stats["bert/span_len_hist"]
    )
    _assert_same_law(
        fidelity, "blank infilling: number of blanks", np.bincount(counts, minlength=80), stats["bert/num_spans_hist"]
    )
    masked = np.array([sum(n - 1 for _, n in row) for row in spans]) / 512
    error = stats["bert/masked_fraction_std"] * np.sqrt(2 / N)
    distance = abs(masked.mean() - stats["bert/masked_fraction_mean"]) / error
    fidelity.within(STATS, "blank infilling: masked share, in standard errors", distance, 4)
    assert abs(masked.std() / stats["bert/masked_fraction_std"] - 1) < 0.03
    assert masked.min() == stats["bert/masked_fraction_min"]

    ordered = [sorted(row) for row in spans]
    starts = np.concatenate([[s for s, _ in row] for row in ordered])
    _assert_same_law(
        fidelity,
        "blank infilling: starts",
        np.bincount(starts * 64 // 512, minlength=64),
        stats["bert/start_hist_64bins"],
    )
    gaps = np.concatenate([[b[0] - (a[0] + a[1] - 1) for a, b in itertools.pairwise(row)] for row in ordered])
    assert gaps.min() >= 1  # blanks never touch
    _assert_same_law(
        fidelity, "blank infilling: gaps", np.bincount(np.minimum(gaps, 199), minlength=200), stats["bert/gap_hist"]
    )

    first = np.array([sum(s < row[0][0] for s, _ in row) for row in spans])
    _assert_same_law(
        fidelity,
        "blank infilling: place of the first block",
        np.bincount(np.minimum(first, 19), minlength=20),
        stats["bert/rank_of_first_block_hist"],
    )
    inversions = [
        np.triu(np.less.outer(*(2 * [np.array([s for s, _ in row])])).T, 1).sum() / (len(row) * (len(row) - 1) / 2)
        for row in spans
    ]
    assert abs(np.mean(inversions) - 0.5) < 4 * np.std(inversions) / np.sqrt(N)
    assert counts.max() <= capacity.max_spans
    total = batch.prefix_lengths + (batch.target_weights > 0).sum(1)
    distance = abs(total.mean() - stats["bert/total_len_mean"]) / (2 * counts.std() * np.sqrt(2 / N))
    fidelity.within(STATS, "blank infilling: sequence length, in standard errors", distance, 4)
    assert abs(batch.prefix_lengths.mean() - stats["bert/sep_mean"]) < 4 * batch.prefix_lengths.std() * np.sqrt(2 / N)


@pytest.mark.parametrize("ratio", ["0.5", "0.25"])
def test_document_follows_the_original_law(stats, ratio, fidelity):
    batch, _ = _sample(_rows(N, 512), blank_infilling=0, document=1, document_min_ratio=float(ratio), task_masks=True)
    golden = {k.split("/")[1]: stats[k] for k in stats.files if k.startswith(f"doc_min{ratio}/")}
    live = (batch.target_weights > 0).sum(1)
    closed = np.array([batch.target_ids[i, n - 1] == SPECIAL.end for i, n in enumerate(live)])
    generated = live - closed
    distance = abs((~closed).mean() - golden["suffix_fraction"]) / np.sqrt(0.5 / N)
    fidelity.within(STATS, "documents: share of suffixes, in standard errors", distance, 4)
    assert generated.min() == golden["gen_len_min"]
    assert generated.max() == golden["gen_len_max"]
    _assert_same_law(
        fidelity, "documents: lengths", np.bincount(generated * 16 // 512, minlength=16), golden["gen_len_hist_16bins"]
    )
    position = (batch.tokens == SPECIAL.generation_mask).argmax(1)
    _assert_same_law(
        fidelity,
        "documents: places of the mask",
        np.bincount(position * 16 // 512, minlength=16),
        golden["mask_pos_hist_16bins"],
    )


def test_sentences_follow_the_original_law(stats, fidelity):
    tokens = _rows(N, 512, sentence_prob=float(stats["sentence/p_sentence_end"]))
    batch, _ = _sample(tokens, blank_infilling=0, sentence=1, task_masks=True)
    spans = [_decode(batch, i) for i in range(N)]
    _assert_same_law(
        fidelity,
        "sentences: number of blanks",
        np.bincount([len(row) for row in spans], minlength=60),
        stats["sentence/num_spans_hist"],
    )
    masked = np.array([sum(n - 1 for _, n in row) for row in spans]) / 512
    error = stats["sentence/masked_fraction_std"] * np.sqrt(2 / N)
    distance = abs(masked.mean() - stats["sentence/masked_fraction_mean"]) / error
    fidelity.within(STATS, "sentences: masked share, in standard errors", distance, 4)
    for row, text in zip(spans[:200], tokens, strict=False):  # every span is whole sentences' text
        for start, n in row:
            assert start == 1 or text[start - 1] in (SENTENCE_END, SPECIAL.eos)
            assert text[start + n - 2] == SENTENCE_END or start + n - 1 == 512


def test_documents_of_a_row_share_the_spans():
    """Several documents: no span crosses one, shorter ones get at most 15 %, [CLS] and [EOS] stay."""
    rng = np.random.default_rng(1)
    tokens = _rows(600, 256, seed=2)
    cuts = rng.integers(20, 230, (600, 2))
    for row, at in zip(tokens, cuts, strict=True):
        for cut in at:
            row[cut], row[cut + 1] = SPECIAL.eos, SPECIAL.cls
    batch, _ = _sample(tokens)
    shares = []
    for i, text in enumerate(tokens):
        ends = np.flatnonzero(text == SPECIAL.eos)
        document = np.searchsorted(ends, np.arange(256))
        taken = np.zeros(256, bool)
        for start, n in _decode(batch, i):
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


def test_segments_match_a_plain_scan():
    rng = np.random.default_rng(3)
    find = jax.jit(jax.vmap(functools.partial(spans_lib.segments, cls=1, eos=0, max_segments=40)))
    tokens = rng.choice([0, 1, 20, 21, 22, 23, 24], (300, 40), p=[0.12, 0.1, 0.2, 0.2, 0.2, 0.1, 0.08]).astype(np.int32)
    lengths = rng.integers(1, 41, 300).astype(np.int32)
    starts, sizes = jax.device_get(find(tokens, lengths, np.zeros((300, 1), np.int32)))
    for row, n, got_starts, got_sizes in zip(tokens, lengths, starts, sizes, strict=True):
        expected, begin = [], 0
        for end in [*np.flatnonzero(row[:n] == 0), n]:
            first = begin + (begin < n and row[begin] == 1)
            size = end - first - (end == n)
            if size > 0:
                expected.append((-size, first))
            begin = end + 1
        got = [(-int(b), int(a)) for a, b in zip(got_starts, got_sizes, strict=True) if b > 0]
        assert got == sorted(expected)


def test_capacity_is_exact_and_bites_as_often_as_it_says():
    config = CorruptionConfig()
    small = dataclasses.replace(config, overflow_prob=0.05)
    capacity = small.capacity(128)
    exact = spans_lib.infilling_capacity(128, 0.15, 3.0, 39, 0.05)
    rng = np.random.default_rng(0)
    weights = spans_lib.length_weights(3.0, 39)
    budget, bites, trials = int(0.15 * 128), 0, 40_000
    draws = rng.choice(np.arange(1, 40), (trials, budget), p=weights)
    for row in draws:
        count = np.searchsorted(np.cumsum(row), budget) + 1
        bites += count > exact.max_spans or row[:count].sum() + count > exact.max_targets
    assert abs(bites / trials - exact.overflow_prob) < 4 * np.sqrt(exact.overflow_prob / trials)
    assert 0 < exact.overflow_prob <= 0.05
    assert capacity.max_spans >= exact.max_spans
    assert config.capacity(512).overflow_prob < 1e-4


def test_rows_with_many_blanks_give_up_their_last_tokens():
    """T is what most rows need; as much text is lost as the config allows at most, and no other row changes."""
    rows, length = _rows(4000, 128), 128
    whole, roomy = _sample(rows, truncation_rate=0.0)
    batch, config = _sample(rows)
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
    rates = {rate: spans_lib.spans_with_room(length, 0.15, 3.0, 39, rate) for rate in (0.0, 2e-3, 5e-3, 0.5)}
    assert rates == {0.0: 19, 2e-3: 8, 5e-3: 7, 0.5: 1}


@pytest.mark.parametrize(
    "options", [{"max_spans": 16}, {"sentence": 1.0}, {"short_sequence_prob": 0.5}, {"truncation_rate": 0}]
)
def test_rows_are_whole_where_that_is_wanted_or_their_blanks_follow_from_the_text(options):
    config = CorruptionConfig(**options)
    assert config.sequence_length(128) == 128 + 2 * config.capacity(128).max_spans


def test_examples_depend_on_their_index_alone():
    """Batch size, neighbours and place in the batch change nothing; another index or seed does."""
    config = CorruptionConfig(blank_infilling=1, sentence=1, document=1, task_masks=True, short_sequence_prob=0.3)
    tokens = _rows(12, 96, sentence_prob=0.1)
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


def test_examples_side_by_side_are_those_that_stand_alone():
    """Each has the columns and targets of its own objective; nothing else tells it from an example with its own row."""
    config = CorruptionConfig(1, 0, 2, pack_objectives=True, task_masks=True)
    slots = config.slots()
    assert [slot.mixture for slot in slots] == [(1, 0, 0), (0, 0, 1), (0, 0, 1)]
    tokens, index = _rows(12, 96), np.arange(30, 42, dtype=np.uint32)
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


@pytest.mark.parametrize(
    ("weights", "slots"), [((0.5, 0, 0.5), 2), ((0.4, 0.3, 0.3), 10), ((1, 1, 1), 3), ((3, 0, 0), 1)]
)
def test_the_smallest_group_that_holds_the_mixture(weights, slots):
    config = CorruptionConfig(*weights, pack_objectives=True)
    shares = np.mean([slot.mixture for slot in config.slots()], axis=0)
    assert len(config.slots()) == slots
    np.testing.assert_allclose(shares, config.mixture)


@pytest.mark.parametrize("mixture", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)])
def test_every_length_from_nothing_up_gives_a_lawful_example(mixture):
    """Rows of 0 … 24 tokens, without a [CLS], all [EOS], full of sentence ends: invariants hold."""
    config = CorruptionConfig(
        *mixture, task_masks=True, max_spans=12, max_targets=24, short_sequence_prob=0.2 if mixture == (1, 1, 1) else 0
    )
    row = 24
    rng = np.random.default_rng(5)
    rows = rng.choice([0, 1, 10, 21, 22, 23], (500, row), p=[0.1, 0.1, 0.15, 0.25, 0.2, 0.2]).astype(np.int32)
    rows[:25, 0], rows[25:50] = 1, 0
    lengths = (np.arange(500) % (row + 1)).astype(np.int32)
    batch, _ = _sample(rows, lengths, **dataclasses.asdict(config))
    width = config.sequence_length(row)
    live = (batch.target_weights > 0).sum(1)
    assert batch.tokens.shape == (500, width)
    assert ((batch.prefix_lengths >= 0) & (batch.prefix_lengths + live <= width)).all()
    assert batch.prefix_lengths.max() <= batch.slots[0].longest_prefix == config.longest_prefix(row)
    for i in range(500):
        raw = rows[i, : lengths[i]]
        prefix, n = batch.prefix_lengths[i], live[i]
        spans = _decode(batch, i)
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blank_infilling": 0}, "not all zero"),
        ({"mask_ratio": 1.5}, "mask_ratio=1.5"),
        ({"document": 1, "block_positions": False}, "block_positions"),
        ({"random_position": True}, "max_position"),
        ({"masked_lm": True, "sentence": 1}, "masked_lm"),
        ({"single_span_prob": 2}, "single_span_prob=2"),
        ({"truncation_rate": -0.1}, "truncation_rate=-0.1"),
        ({"document": 0.123, "pack_objectives": True}, "small whole numbers"),
        ({"short_sequence_prob": 0.1, "sentinel_offset": 900, "max_position": 512}, "short_sequence_prob=0"),
    ],
)
def test_contradictory_configs_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CorruptionConfig(**options)


def test_missing_sentence_ends_are_refused():
    with pytest.raises(ValueError, match="sentence_ends"):
        corrupt(
            jax.random.key(0), jnp.zeros((1, 32), jnp.int32), jnp.full(1, 32), jnp.zeros(1, jnp.uint32),
            config=CorruptionConfig(sentence=1), special=SPECIAL,
        )  # fmt: skip


@pytest.mark.parametrize("ratio", [0.01, 0.15, 0.2, 0.33, 0.7, 0.9, 1.0])
def test_budgets_are_rounded_as_in_double_precision(ratio):
    """0.7 and 0.33 need a table for long rows: int(0.7 · 10) is 7, int(0.7 · 30) is 21, but int(0.7 · 90) is 62."""
    for longest in (64, 1024, 8192):
        found = spans_lib.budget(ratio, jnp.arange(longest + 1), longest)
        np.testing.assert_array_equal(found, [int(ratio * n) for n in range(longest + 1)])


@pytest.mark.parametrize("mixture", [{}, {"sentence": 0.6, "document": 0.4}])
def test_no_array_of_blanks_by_columns_is_held(mixture):
    """36 blanks of 568 columns would be 40 times the row; XLA computes what is summed over them on the way."""
    rows = jax.ShapeDtypeStruct((16, 512), np.int32), jax.ShapeDtypeStruct((16,), np.int32)
    index, ends = jax.ShapeDtypeStruct((16,), np.uint32), jax.ShapeDtypeStruct((1000,), bool)
    compiled = corrupt.lower(
        jax.random.key(0), *rows, index, ends, config=CorruptionConfig(**mixture), special=SPECIAL
    ).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 20 * 16 * 512 * 4
