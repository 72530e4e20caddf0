"""How far numbers of a few seeds and some hundred test examples can be trusted.

An interval is that of a percentile bootstrap (Efron and Tibshirani 1993, chapter 13) which draws test examples and
seeds anew, both with replacement; differences are paired: both candidates are measured on the same drawn examples and,
where both have several, the same drawn seeds. Where a metric is no mean over examples (BLEU), only seeds are drawn
anew, by Student's t. It says nothing about other datasets, pretrained checkpoints or search spaces.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

RESAMPLES = 10_000
# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom; beyond, the normal distribution's.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def bootstrap_interval(
    values: Float[np.ndarray, "S N"], other: Float[np.ndarray, "R N"] | None = None, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The 95 % interval of the mean over seeds and examples; with `other` that of the difference of the means.

    Args:
      values: of every seed and example, such as 100 for a right answer and 0 for a wrong one.
      other: of the same examples, what is subtracted.
      resamples: how often is drawn. The draws are the same in every call.
    """
    rng = np.random.default_rng(0)
    seeds, count = values.shape
    same_seeds = other is not None and other.shape[0] == seeds
    means = np.empty(resamples)
    for start in range(0, resamples, 250):
        size = min(250, resamples - start)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=size) / count  # [size, N]
        drawn = rng.integers(seeds, size=(size, seeds))
        part = _mean(values, weights, drawn)
        if other is not None:
            rows = drawn if same_seeds else rng.integers(other.shape[0], size=(size, other.shape[0]))
            part -= _mean(other, weights, rows)
        means[start : start + size] = part
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def _mean(values, weights, drawn):
    by_seed = weights @ values.T  # [size, S]
    return np.take_along_axis(by_seed, drawn, axis=1).mean(axis=1)


def seed_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean over seeds, by Student's t; None for one seed."""
    if len(values) < 2:
        return None
    freedom = len(values) - 1
    quantile = _T[freedom - 1] if freedom <= len(_T) else 1.96
    mean, half = float(np.mean(values)), quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean - half, mean + half


def calibration_error(
    confidence: Float[np.ndarray, "N"], correct: Float[np.ndarray, "N"], bins: int = 10
) -> tuple[float, list[tuple[float, float, int]]]:
    """The expected calibration error (Guo et al. 2017), and (mean confidence, accuracy, count) of each filled bin."""
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    points, error = [], 0.0
    for number in range(bins):
        inside = which == number
        if inside.any():
            mean, accuracy, count = confidence[inside].mean(), correct[inside].mean(), int(inside.sum())
            points.append((float(mean), float(accuracy), count))
            error += count / len(confidence) * abs(float(mean) - float(accuracy))
    return error, points
