"""The parts of the samplers against plain loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.corruption.spans import num_masked_tokens, segments


def test_segments_match_a_plain_scan():
    rng = np.random.default_rng(3)
    find = jax.jit(jax.vmap(functools.partial(segments, cls=1, eos=0, max_segments=40)))
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


@pytest.mark.parametrize("ratio", [0.01, 0.15, 0.2, 0.33, 0.7, 0.9, 1.0])
def test_budgets_are_rounded_as_in_double_precision(ratio):
    """0.7 and 0.33 need a table for long rows: int(0.7 · 10) is 7, int(0.7 · 30) is 21, but int(0.7 · 90) is 62."""
    for longest in (64, 1024, 8192):
        found = num_masked_tokens(ratio, jnp.arange(longest + 1), longest)
        np.testing.assert_array_equal(found, [int(ratio * n) for n in range(longest + 1)])
