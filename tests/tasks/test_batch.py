"""Batches for evaluation: every row once, in batches of one size."""

import numpy as np

from glm_jax.tasks.batch import batches_by_length
from glm_jax.tasks.encoding import encode_candidates, encode_example


def test_batches_hold_every_row_once_and_are_filled_with_the_last():
    lengths = [70, 3, 65, 4, 5]
    rows = [encode_example(5, [1, *range(10, 10 + n), 2], [n + 1], [[30, 6]]) for n in lengths]
    batches = list(batches_by_length(rows, 3, pad=99))
    assert [numbers for numbers, _ in batches] == [[1, 3, 4], [2, 0]]
    assert [batch.tokens.shape for _, batch in batches] == [(3, 64), (3, 128)]
    assert all(batch.target_ids.shape == (3, 8) and batch.candidate_mask.shape == (3, 8) for _, batch in batches)
    last = batches[-1][1]
    for line, number in zip(last.tokens, (2, 0, 0), strict=True):
        np.testing.assert_array_equal(line[: len(rows[number])], rows[number].tokens)
        assert set(line[len(rows[number]) :].tolist()) == {99}
    assert last.segment_ids is None


def test_sizes_of_many_targets_and_candidates():
    (row,) = encode_candidates(5, [1, 2, 0], 1, [[30 + i] for i in range(9)], single_token=True)
    for multiple, num_targets in ((8, 16), (64, 64)):
        ((_, batch),) = batches_by_length([row], 1, pad=0, target_multiple=multiple, segments=True)
        assert batch.target_ids.shape == (1, num_targets)
        assert batch.candidate_mask.tolist() == [[1.0] * 9 + [0.0] * 7]
        assert batch.target_candidate[0, :9].tolist() == list(range(9))
        assert batch.segment_ids[0, :4].tolist() == [0, 0, 0, 1]
