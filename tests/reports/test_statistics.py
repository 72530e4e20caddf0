"""Intervals against laws that are known, and calibration by hand."""

import numpy as np
import pytest

from glm_jax.reports.statistics import bootstrap_interval, calibration_error, seed_interval


def test_the_interval_of_an_accuracy_is_that_of_the_binomial():
    right = np.zeros((1, 400))
    right[0, :320] = 100
    low, high = bootstrap_interval(right)
    half = 1.96 * 100 * (0.8 * 0.2 / 400) ** 0.5
    assert low == pytest.approx(80 - half, abs=0.4)
    assert high == pytest.approx(80 + half, abs=0.4)


def test_intervals_cover_as_often_as_they_say():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        low, high = bootstrap_interval(100.0 * (rng.random((1, 200)) < 0.7), resamples=400)
        covered += low <= 70 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_a_paired_difference_is_narrower_than_two_intervals():
    rng = np.random.default_rng(1)
    easy = rng.random(500) < 0.8
    first = 100.0 * np.stack([easy ^ (rng.random(500) < 0.02) for _ in range(3)])
    second = 100.0 * np.stack([easy ^ (rng.random(500) < 0.04) for _ in range(3)])
    low, high = bootstrap_interval(first, second)
    assert low < (first.mean() - second.mean()) < high
    single = bootstrap_interval(first)
    assert high - low < (single[1] - single[0])
    assert bootstrap_interval(first, first) == (0.0, 0.0)


def test_seeds_alone_have_students_interval():
    assert seed_interval([3.0]) is None
    low, high = seed_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)


def test_calibration():
    confidence, correct = np.array([0.95, 0.95, 0.55, 1.0]), np.array([1.0, 0.0, 1.0, 1.0])
    error, points = calibration_error(confidence, correct)
    assert points == [(pytest.approx(0.55), 1.0, 1), (pytest.approx(2.9 / 3), pytest.approx(2 / 3), 3)]
    assert error == pytest.approx(0.25 * 0.45 + 0.75 * (2.9 / 3 - 2 / 3))
