"""Static sizes of a corrupted example, computed from the distributions of the spans. NumPy only."""

import functools
import math
from typing import NamedTuple

import numpy as np


class Capacity(NamedTuple):
    """Static sizes of a corrupted example, and how often they are too small."""

    max_spans: int  # S
    max_targets: int  # K
    overflow_prob: float  # probability that blank infilling draws a span that does not fit S or K


@functools.cache
def masked_tokens_table(ratio: float, max_length: int) -> np.ndarray:
    """int(ratio · n) for n = 0 … `max_length`, in double precision as the original computes it. int32."""
    return np.array([int(ratio * n) for n in range(max_length + 1)], np.int32)


@functools.cache
def fixed_point_ratio(ratio: float, max_length: int) -> tuple[int, int] | None:
    """The first (factor, shift) for which (factor · n) >> shift is int(ratio · n) in 32 bits for all n, or None."""
    table, numbers = masked_tokens_table(ratio, max_length), np.arange(max_length + 1)
    for shift in range(31):
        factor = math.ceil(ratio * 2**shift)
        if factor * max_length < 2**31 and ((numbers * factor) >> shift == table).all():
            return factor, shift
    return None


def length_weights(average: float, max_length: int) -> np.ndarray:
    """Poisson(`average`) probabilities of the lengths 1 … `max_length`, renormalised (paper, section 2.1)."""
    lengths = np.arange(1, max_length + 1)
    log_weights = lengths * math.log(average) - average - np.array([math.lgamma(n + 1) for n in lengths])
    weights = np.exp(log_weights)
    return weights / weights.sum()


def length_thresholds(weights: np.ndarray) -> np.ndarray:
    """uint32 [max_length - 1]: a random word draws the length 1 + the number of thresholds that it reaches."""
    return np.minimum(np.round(np.cumsum(weights)[:-1] * 2**32), 2**32 - 1).astype(np.uint32)


def max_infilling_segments(row: int, ratio: float) -> int:
    """How many documents of a row of `row` tokens blank infilling considers, the longest first.

    Only a document in which at least one token may be masked can take a span, so fewer than row / (1/ratio + 2) matter.
    """
    return min(row, row // (math.ceil(1 / ratio) + 2) + 2) if ratio < 1 else row


@functools.cache
def infilling_capacity(
    length: int, ratio: float, average: float, max_length: int, overflow_prob: float, repeats: int = 1
) -> Capacity:
    """The smallest S and K that blank infilling overflows with probability `overflow_prob` at most.

    The row is `repeats` independent texts of `length` tokens each.
    """
    if int(ratio * length) == 0:
        return Capacity(1, 1, 0.0)
    span_distribution, target_distribution = _infilling_distributions(length, ratio, average, max_length)
    spans, targets = np.ones(1), np.ones(1)
    for _ in range(repeats):
        spans, targets = np.convolve(spans, span_distribution), np.convolve(targets, target_distribution)
    more_spans, more_targets = 1 - np.cumsum(spans), 1 - np.cumsum(targets)
    max_spans, max_targets = (int(np.argmax(more <= overflow_prob / 2)) for more in (more_spans, more_targets))
    return Capacity(max_spans, max_targets, float(more_spans[max_spans] + max(more_targets[max_targets], 0.0)))


@functools.cache
def spans_for_truncation_rate(length: int, ratio: float, average: float, max_length: int, rate: float) -> int:
    """The fewest spans that T needs room for, so that truncation loses at most `rate` of all tokens.

    A row with more spans than that is truncated by two tokens for each.
    """
    if int(ratio * length) == 0:
        return 1
    distribution, _ = _infilling_distributions(length, ratio, average, max_length)
    count = np.arange(distribution.size)
    truncated = [2 * (distribution * np.maximum(count - room, 0)).sum() / length for room in count]
    return max(int(np.argmax(np.array(truncated) <= rate)), 1)


def max_document_context(length: int, min_ratio: float) -> int:
    """The largest Part A of the document objective, its mask included, for one text of up to `length` tokens."""
    rows = np.arange(length + 1)
    generated = np.minimum(masked_tokens_table(min_ratio, length), np.maximum(rows - 2, 0))
    return int((rows - generated + 1).max())


@functools.cache
def _infilling_distributions(length, ratio, average, max_length):
    """Exact probabilities of each number of spans and of targets: lengths are drawn until int(ratio · length)."""
    limit = int(ratio * length)
    weights = length_weights(average, max_length)
    unfinished = np.zeros(limit)  # probability of each sum below the limit after c draws
    unfinished[0] = 1.0
    spans, targets = np.zeros(limit + 1), np.zeros(2 * limit + max_length + 1)
    for draws in range(1, limit + 1):
        total = np.convolve(unfinished, np.concatenate([[0.0], weights]))
        finished, unfinished = total[limit:], total[:limit]  # finished: with that many masked tokens
        spans[draws] = finished.sum()
        targets[limit + draws : limit + draws + finished.size] += finished
    return spans, targets
