"""The placement of blanks in a document: given the original's sorted draws, the original's starts.

`test_distributions.py` compares the distribution of the draws themselves, on gaps and starts of 20,000 rows.
"""

import functools
import json

import jax
import numpy as np

from glm_jax.corruption import spans
from tests.helpers.paths import GOLDEN

CASES = json.loads((GOLDEN / "sample_spans_cases.json").read_text())
CLS, EOS = 1, 0
LONGEST = 1000  # a length no case has: drawing it ends the drawing, because so many targets do not fit


def words_for_lengths(lengths, slots):
    """Random words from which `draw_lengths` draws `lengths` in this order, and then nothing."""
    wanted = np.full(slots, LONGEST)
    wanted[: len(lengths)] = lengths
    return ((wanted - 0.5) / LONGEST * 2**32).astype(np.uint32)


def words_for_gaps(gaps, free, slots):
    """Random words whose normalised exponentials, summed up, fall into the cells `gaps` of `free` equal ones."""
    rank = np.array([gaps[:j].count(gap) for j, gap in enumerate(gaps)])
    ties = np.array([gaps.count(gap) for gap in gaps])
    inside = (np.array(gaps) + (rank + 1) / (ties + 1)) / free  # ascending, in the middle of their cells
    steps = 4.0 * np.diff([0.0, *inside, 1.0])
    words = np.clip(np.round(np.exp(-steps) * 2**24 - 0.5), 0, 2**24 - 1).astype(np.uint32) << 8
    return np.pad(words[:-1], (0, slots - len(gaps))), np.full(slots, words[-1])


def test_the_originals_draws_give_the_originals_placement(fidelity):
    slots = max(len(case["lens"]) for case in CASES)
    row = max(case["total"] for case in CASES) + 4
    tokens, lengths, words, expected = [], [], [], []
    for case in CASES:
        assert case["offset"] == 3
        # [EOS][EOS][CLS] document [EOS]: the only segment that is not empty begins at 3
        text = np.full(row, EOS)
        text[2], text[3 : 3 + case["total"]] = CLS, 20
        starts = [start for start, _ in case["spans"]]
        assert [stop - start for start, stop in case["spans"]] == case["lens"]
        before = np.cumsum([0, *(n + 1 for n in case["lens"][:-1])])  # earlier blanks, and a token behind each
        gaps = [int(start - 3 - taken) for start, taken in zip(starts, before, strict=True)]
        free = case["total"] - sum(case["lens"]) - len(gaps) + 2  # as many values as the original draws from
        assert gaps == sorted(gaps)
        assert 0 <= gaps[0] <= gaps[-1] < free
        one, rest = words_for_gaps(gaps, free, slots)
        order = np.arange(slots, dtype=np.uint32)  # lengths are placed in the order in which they were drawn
        words.append(np.stack([words_for_lengths(case["lens"], slots), order, one, rest, order]))
        tokens.append(text)
        lengths.append(case["total"] + 4)
        expected.append(np.pad(np.array(case["spans"]).T, ((0, 0), (0, slots - len(gaps)))))
    place = functools.partial(
        spans.blank_infilling, subsequence_starts=jax.numpy.zeros(1, int), single=jax.numpy.bool_(False), ratio=0.99,
        weights=np.full(LONGEST, 1 / LONGEST),
        max_targets=LONGEST - 1, cls=CLS, eos=EOS, shuffle=False,
    )  # fmt: skip
    found = jax.jit(jax.vmap(place))(np.stack(words), np.stack(tokens).astype(np.int32), np.array(lengths, np.int32))
    used = np.asarray(found.lengths) > 0
    starts = np.where(used, found.starts, 0)
    found = np.stack([starts, np.where(used, starts + found.lengths, 0)], 1)
    fidelity.equal("sample_spans_cases.json", "200 placements, given the sorted draws", found, np.stack(expected))
