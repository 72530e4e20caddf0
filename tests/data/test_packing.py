import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_jax.data import DataError
from glm_jax.data.packing import ConcatenatedRows, ContiguousRows, Mixture, SampledRows
from tests.helpers.paths import GOLDEN

GOLDEN = json.loads((GOLDEN / "block_dataset.json").read_text())
CLS, EOS, PAD = 1, 2, 0


def contiguous(store, length):
    return ContiguousRows(store, sequence_length=length, cls=CLS, eos=EOS, pad=PAD)


def numbered(documents, lengths):
    """Documents whose tokens are 10, 11, 12, … through all of them."""
    ends = np.cumsum(lengths)
    return documents([np.arange(end - length, end) % 60000 + 10 for length, end in zip(lengths, ends, strict=True)])


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([3, 2], [[1, 10, 11, 12, 2, 1], [1, 13, 14, 2]]),  # CLS in the last place: the next row begins with it again
        ([4, 2], [[1, 10, 11, 12, 13, 2], [1, 14, 15, 2]]),  # a document that starts its row has one CLS
        ([7, 1], [[1, 10, 11, 12, 13, 14], [1, 15, 16, 2, 1, 17], [1, 2]]),  # a tail, with CLS in front
        ([1], [[1, 10, 2]]),
    ],
)
def test_rows_worked_by_hand(documents, lengths, expected):
    rows = contiguous(numbered(documents, lengths), 6)
    made = [rows[i] for i in range(len(rows))]
    assert [row["tokens"][: row["length"]].tolist() for row in made] == expected
    assert all((row["tokens"][row["length"] :] == PAD).all() for row in made)
    assert {(row["tokens"].dtype, row["tokens"].shape, row["length"].dtype) for row in made} == {
        (np.dtype(np.int32), (6,), np.dtype(np.int32))
    }


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=300), st.integers(2, 17))
def test_every_token_exactly_once_in_full_rows(documents, lengths, length):
    store = numbered(documents, lengths)
    rows = contiguous(store, length)
    read, ends = [], []
    for i in range(len(rows)):
        row = rows[i]
        assert row["length"] == length or i == len(rows) - 1
        assert row["length"] >= 2
        assert row["tokens"][0] == CLS
        for token in row["tokens"][: row["length"]]:
            if token == EOS:
                ends.append(len(read))
            elif token != CLS:
                read.append(token)
    np.testing.assert_array_equal(read, np.concatenate([store[i] for i in range(len(store))]))
    np.testing.assert_array_equal(ends, np.cumsum(lengths))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=200), st.integers(3, 12))
def test_each_document_is_opened_once_and_every_row_by_cls(documents, lengths, length):
    rows = contiguous(numbered(documents, lengths), length)
    tokens = [rows[i]["tokens"][: rows[i]["length"]] for i in range(len(rows))]
    for row in tokens:
        inner = row[1:]
        after_end = np.flatnonzero(inner == EOS) + 1
        opened = set(np.flatnonzero(inner == CLS))
        assert opened == set(after_end[after_end < len(inner)])  # a CLS inside a row stands behind EOS, and there alone


def test_one_very_long_document(documents):
    store = numbered(documents, [100_000])
    rows = contiguous(store, 513)
    assert len(rows) == -(-100_001 // 512)
    np.testing.assert_array_equal(rows[7]["tokens"][1:], store[0][7 * 512 : 8 * 512])


def test_fingerprints_differ(documents):
    one, two = numbered(documents, [5, 6]), numbered(documents, [6, 5])
    prints = [contiguous(one, 8), contiguous(two, 8), contiguous(one, 9), sampled(one, 8), sampled(one, 8, one=True)]
    assert len({rows.fingerprint() for rows in prints}) == 5
    assert contiguous(numbered(documents, [5, 6]), 8).fingerprint() == prints[0].fingerprint()


def test_rows_outside(documents):
    rows = contiguous(numbered(documents, [5]), 8)
    with pytest.raises(IndexError):
        rows[1]
    with pytest.raises(DataError, match="at least 2"):
        contiguous(numbered(documents, [5]), 1)


def sampled(store, size, *, one=False, start=0.0):
    ends = np.zeros(60010, np.bool_)
    ends[10] = True
    return SampledRows(
        store,
        sequence_length=size,
        sentence_ends=ends,
        cls=1,
        eos=0,
        pad=-1,
        sample_one_document=one,
        non_sentence_start=start,
    )


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['max_seq_len']}-{case['sample_across_doc']}")
def test_sampled_rows_are_those_of_the_original(documents, case, fidelity):
    store = documents([prompt + text for prompt, text in zip(GOLDEN["prompts"], GOLDEN["docs"], strict=True)])
    rows = sampled(
        store, case["max_seq_len"], one=not case["sample_across_doc"], start=float(case["non_sentence_start"])
    )
    assert len(rows) == case["num_samples"]
    assert len(case["rows"]) == 40
    for expected in case["rows"]:
        row = rows[expected["idx"]]
        fidelity.equal("block_dataset.json", "160 rows", row["tokens"][: row["length"]].tolist(), expected["text"])
        assert (row["tokens"][row["length"] :] == -1).all()


def test_concatenated_rows(documents):
    parts = [contiguous(numbered(documents, [n]), 6) for n in (9, 3, 20)]
    rows = ConcatenatedRows(parts)
    expected = [part[i]["tokens"] for part in parts for i in range(len(part))]
    np.testing.assert_array_equal([rows[i]["tokens"] for i in range(len(rows))], expected)
    with pytest.raises(DataError, match="different lengths"):
        ConcatenatedRows([parts[0], contiguous(numbered(documents, [3]), 7)])


def test_mixtures_are_checked(documents):
    parts = [contiguous(numbered(documents, [n]), 6) for n in (9, 3)]
    assert Mixture(parts, [1, 2]).fingerprint() != Mixture(parts, [2, 1]).fingerprint()
    for weights in ([1], [1, 0], [1, float("nan")]):
        with pytest.raises(DataError, match="a mixture of 2 parts needs a positive weight for each"):
            Mixture(parts, weights)
    with pytest.raises(DataError, match="different lengths"):
        Mixture([parts[0], contiguous(numbered(documents, [3]), 7)], [1, 1])
