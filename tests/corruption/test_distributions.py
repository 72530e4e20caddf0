"""The distributions of the spans against 20,000 samples of the original."""

import itertools

import numpy as np
import pytest

from tests.helpers.corrupted_rows import decode, sample, text_rows
from tests.helpers.corruption_records import GOLDEN, SENTENCE_END, SPECIAL


def _assert_same_distribution(fidelity, what, ours, original, minimum=40):
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


@pytest.mark.thorough
def test_blank_infilling_follows_the_original_distribution(stats, fidelity):
    batch, config = sample(text_rows(N, 512), truncation_rate=0.0)  # the original keeps every token
    capacity = config.capacity(512)
    spans = [decode(batch, i) for i in range(N)]
    lengths = np.concatenate([[n - 1 for _, n in row] for row in spans])  # the end token counts in n
    counts = np.array([len(row) for row in spans])
    _assert_same_distribution(
        fidelity, "blank infilling: lengths", np.bincount(lengths, minlength=41), stats["bert/span_len_hist"]
    )
    _assert_same_distribution(
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
    _assert_same_distribution(
        fidelity,
        "blank infilling: starts",
        np.bincount(starts * 64 // 512, minlength=64),
        stats["bert/start_hist_64bins"],
    )
    gaps = np.concatenate([[b[0] - (a[0] + a[1] - 1) for a, b in itertools.pairwise(row)] for row in ordered])
    assert gaps.min() >= 1  # blanks never touch
    _assert_same_distribution(
        fidelity, "blank infilling: gaps", np.bincount(np.minimum(gaps, 199), minlength=200), stats["bert/gap_hist"]
    )

    first = np.array([sum(s < row[0][0] for s, _ in row) for row in spans])
    _assert_same_distribution(
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


@pytest.mark.thorough
@pytest.mark.parametrize("ratio", ["0.5", "0.25"])
def test_document_follows_the_original_distribution(stats, ratio, fidelity):
    batch, _ = sample(
        text_rows(N, 512), blank_infilling=0, document=1, document_min_ratio=float(ratio), task_masks=True
    )
    golden = {k.split("/")[1]: stats[k] for k in stats.files if k.startswith(f"doc_min{ratio}/")}
    live = (batch.target_weights > 0).sum(1)
    closed = np.array([batch.target_ids[i, n - 1] == SPECIAL.end for i, n in enumerate(live)])
    generated = live - closed
    distance = abs((~closed).mean() - golden["suffix_fraction"]) / np.sqrt(0.5 / N)
    fidelity.within(STATS, "documents: share of suffixes, in standard errors", distance, 4)
    assert generated.min() == golden["gen_len_min"]
    assert generated.max() == golden["gen_len_max"]
    _assert_same_distribution(
        fidelity, "documents: lengths", np.bincount(generated * 16 // 512, minlength=16), golden["gen_len_hist_16bins"]
    )
    position = (batch.tokens == SPECIAL.generation_mask).argmax(1)
    _assert_same_distribution(
        fidelity,
        "documents: places of the mask",
        np.bincount(position * 16 // 512, minlength=16),
        golden["mask_pos_hist_16bins"],
    )


@pytest.mark.thorough
def test_sentences_follow_the_original_distribution(stats, fidelity):
    tokens = text_rows(N, 512, sentence_prob=float(stats["sentence/p_sentence_end"]))
    batch, _ = sample(tokens, blank_infilling=0, sentence=1, task_masks=True)
    spans = [decode(batch, i) for i in range(N)]
    _assert_same_distribution(
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
