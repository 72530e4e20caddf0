"""Masks by hashing: as random as dropout needs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.model.dropout import dropout, keep_mask, mask_seeds


def test_dropout_has_the_rate_and_keeps_the_mean():
    x = jnp.ones((400, 500))
    y = np.asarray(dropout(x, 0.1, jax.random.key(0)))
    share = (y == 0).mean()
    assert abs(share - 0.1) < 5 * np.sqrt(0.1 * 0.9 / x.size)
    np.testing.assert_allclose(y[y != 0], 1 / 0.9, rtol=1e-6)
    assert dropout(x, 0.0, jax.random.key(0)) is x
    assert dropout(x, 0.1, None) is x


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_masks_are_independent(rate):
    """Rows, columns, neighbours, rectangles and masks of other keys: each share lies where that of fair coins does."""
    n = 512
    masks = [np.asarray(keep_mask(mask_seeds(jax.random.key(seed)), rate, (n, n))) for seed in range(6)]
    dropped = [~mask for mask in masks]
    spread = np.sqrt(rate * (1 - rate))
    for mask in dropped:
        centred = (mask - rate) / spread
        for axis in (0, 1):  # chi-square of the shares by row and by column, n degrees of freedom
            assert abs((centred.mean(axis) ** 2 * n).sum() - n) < 5 * np.sqrt(2 * n)
            for distance in (1, 2, 4, 8, 64, 256):
                product = (centred * np.roll(centred, distance, axis)).mean()
                assert abs(product) < 5 / n, (axis, distance)
        rectangles = centred[:-1, :-1] * centred[1:, :-1] * centred[:-1, 1:] * centred[1:, 1:]
        assert abs(rectangles.mean()) < 5 / n
    for a in range(6):
        for b in range(a):
            product = ((dropped[a] - rate) * (dropped[b] - rate)).mean() / spread**2
            assert abs(product) < 5 / n


def test_more_rows_than_can_be_numbered_are_refused():
    with pytest.raises(ValueError, match="more than 2\\^32 rows"):
        keep_mask(mask_seeds(jax.random.key(0)), 0.1, (2**17, 2**16, 8))
