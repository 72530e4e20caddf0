"""Which spans are masked: the samplers of the paper's three objectives, without data-dependent shapes.

Every function works on one example and is vectorised with `jax.vmap`. A sort or a scatter over the row would cost more
than everything else, so spans are ordered by comparing them pairwise in S × S arrays, and sorted uniform draws come
from normalised sums of exponentials. `corrupt_numpy.py` draws the same spans with plain loops.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from glm_jax.corruption.capacity import (
    fixed_point_ratio,
    length_thresholds,
    masked_tokens_table,
    max_infilling_segments,
)
from glm_jax.corruption.random_bits import bernoulli, exponential, uniform_int

UNUSED = 2**16  # start of an unused span or subsequence: larger than any column


class Spans(NamedTuple):
    """The masked spans of one example in the order of Part B. Unused entries come last and have length 0."""

    starts: Int[Array, "S"]  # first raw token of the span
    lengths: Int[Array, "S"]
    closed: Bool[Array, "S"]  # whether the span ends with the end token in Part B (not in suffix generation)


def sum_in_parts(values: Array) -> Array:
    """The sum of integers or truth values over axis 0, as a sum of sums of 32.

    XLA's CPU backend writes the values to memory before it reduces more than 32 of them at once.
    """
    if not len(values):
        return values.sum(0)
    return sum(values[first : first + 32].sum(0) for first in range(0, len(values), 32))


def num_masked_tokens(ratio: float, lengths: Int[Array, "*shape"], max_length: int) -> Int[Array, "*shape"]:
    """int(ratio · n) for lengths n up to `max_length`, in double precision as the original computes it.

    Computed with an integer product and a shift where that gives the same for all n: table lookups are slow on a TPU,
    and libtpu 0.0.50 fails to compile this one for v5p.
    """
    if (fixed_point := fixed_point_ratio(ratio, max_length)) is None:
        return jnp.asarray(masked_tokens_table(ratio, max_length))[lengths]
    factor, shift = fixed_point
    return (lengths * factor) >> shift


def subsequence_ids(starts: Int[Array, "W"], columns: Int[Array, "N"]) -> Int[Array, "N"]:
    """Which subsequence of the row, from 1, each column belongs to."""
    return sum_in_parts(starts[:, None] <= columns[None, :])


def subsequence_lengths(starts: Int[Array, "W"], length: Int[Array, ""]) -> Int[Array, "W"]:
    """Tokens of each subsequence of a row of `length` tokens; 0 for unused ones."""
    stops = jnp.minimum(jnp.concatenate([starts[1:], jnp.full(1, UNUSED, starts.dtype)]), length)
    return jnp.maximum(stops - starts, 0)


def _ends_subsequence(starts, length, row):
    """Whether each column is the last of its subsequence, bool [L]."""
    index = jnp.arange(row)
    return (index == length - 1) | ((starts[:, None] == index[None, :] + 1).any(0) & (index < length))


def _rank(keys, used):
    """Rank of each used key among the used ones, int32 [S]; ties by index."""
    index = jnp.arange(keys.size)
    smaller = (keys[:, None] < keys[None, :]) | ((keys[:, None] == keys[None, :]) & (index[:, None] < index[None, :]))
    return sum_in_parts(smaller & used[:, None])


def _part_b_order(bits, starts, lengths, shuffle):
    """Starts and lengths [S], uniformly permuted or left to right when `shuffle` is False; unused spans last."""
    used = lengths > 0
    index = jnp.arange(used.size)
    moves = (_rank(bits if shuffle else starts, used)[:, None] == index[None, :]) & used[:, None]
    unused = index >= used.sum()
    starts = sum_in_parts(jnp.where(moves, starts[:, None], 0))
    return jnp.where(unused, UNUSED, starts), sum_in_parts(jnp.where(moves, lengths[:, None], 0))


# ---------------------------------------------------------------------------- blank infilling


def _sample_lengths(bits, weights):
    return 1 + sum_in_parts(length_thresholds(weights)[:, None] <= bits[None, :])


def draw_lengths(
    bits: UInt32[Array, "S"], num_masked: Int[Array, ""], weights: np.ndarray, max_targets: int, single: Bool[Array, ""]
) -> tuple[Int[Array, "S"], Bool[Array, "S"]]:
    """Lengths drawn until their sum reaches `num_masked` (exactly one if `single`), and which entries were drawn.

    The last draw is not trimmed (as in the original). Drawing stops early at S spans or `max_targets` targets.
    """
    lengths = _sample_lengths(bits, weights)
    index = jnp.arange(lengths.size)
    previous = sum_in_parts(jnp.where(index[:, None] < index[None, :], lengths[:, None], 0))
    drawn = jnp.where(single, index == 0, previous < num_masked) & (previous + lengths + index + 1 <= max_targets)
    return jnp.where(drawn, lengths, 0), drawn


def segments(
    tokens: Int[Array, "L"],
    length: Int[Array, ""],
    subsequence_starts: Int[Array, "W"],
    cls: int,
    eos: int,
    max_segments: int,
) -> tuple[Int[Array, "D"], Int[Array, "D"]]:
    """Starts and usable lengths of the documents in a row, longest first; equally long ones in row order.

    A segment contains neither the document's end nor its [CLS], nor the last token of a subsequence that was cut off.
    """
    row = tokens.size
    index = jnp.arange(row)
    ends = ((tokens == eos) & (index < length)) | _ends_subsequence(subsequence_starts, length, row)
    is_cls = (tokens == cls).astype(jnp.int32)
    next_start = jnp.where(ends, index + 1 + jnp.roll(is_cls, -1), 0)
    start = jnp.maximum(jnp.roll(jax.lax.cummax(next_start), 1).at[0].set(0), is_cls[0])
    usable = jnp.where(ends, jnp.maximum(index - start, 0), 0)
    key = usable * (row + 1) + jnp.where(usable > 0, row - index, 0)
    # top_k has a fast path for float32 only, exact up to 2^24.
    key = key.astype(jnp.float32) if (row + 1) ** 2 < 2**24 else key
    largest, end = jax.lax.top_k(key, max_segments)
    lengths = largest.astype(jnp.int32) // (row + 1)
    return end - lengths, lengths


def blank_infilling(
    bits: UInt32[Array, "5 S"],
    tokens: Int[Array, "L"],
    length: Int[Array, ""],
    subsequence_starts: Int[Array, "W"],
    *,
    single: Bool[Array, ""],
    ratio: float,
    weights: np.ndarray,
    max_targets: int,
    cls: int,
    eos: int,
    shuffle: bool,
) -> Spans:
    """Short spans with Poisson lengths until `ratio` of the row is masked (paper, section 2.1).

    Shorter documents of a row take spans first, up to `ratio` of their own length; the longest takes the rest. In a row
    of several subsequences, every subsequence is masked like a row. Inside a document spans never touch, and the gaps
    are sorted independent draws, not uniform over placements: that is what the original does. Spans that fit nowhere
    stay unmasked, where the original drops the whole example.
    """
    row = tokens.size
    num_masked = functools.partial(num_masked_tokens, ratio, max_length=row)
    lengths, used = _draw_in_random_order(bits, num_masked(length), weights, max_targets, single)
    segment_starts, segment_lengths = segments(
        tokens, length, subsequence_starts, cls, eos, max_infilling_segments(row, ratio)
    )
    segment = _assign_to_documents(lengths, used, num_masked(segment_lengths))
    if subsequence_starts.size > 1:
        # The masked tokens of a row count its [CLS] and its last token, which a segment leaves out.
        limits = jnp.where(segment_lengths > 0, num_masked(jnp.minimum(segment_lengths + 2, row)), 0)
        per_subsequence = _draw_per_segment(bits[0], limits, weights, max_targets, single)
        is_cut = subsequence_starts[1] < UNUSED
        lengths, used, segment = jax.tree.map(
            functools.partial(jnp.where, is_cut), per_subsequence, (lengths, used, segment)
        )
    starts, lengths = _place_in_segments(bits[2], bits[3], lengths, used, segment, segment_starts, segment_lengths)
    return Spans(*_part_b_order(bits[4], starts, lengths, shuffle), jnp.ones_like(used))


def _draw_in_random_order(bits, num_masked, weights, max_targets, single):
    """Span lengths in random order, int32 [S], and which entries are used, bool [S]."""
    drawn_lengths, drawn = draw_lengths(bits[0], num_masked, weights, max_targets, single)
    index = jnp.arange(drawn.size)
    rank = jnp.where(drawn, _rank(bits[1], drawn), -1)
    lengths = sum_in_parts(jnp.where(rank[:, None] == index[None, :], drawn_lengths[:, None], 0))
    return lengths, index < drawn.sum()


def _assign_to_documents(lengths, used, limits):
    """The segment of each span, int32 [S], if segment d > 0 takes up to `limits[d]` tokens and segment 0 the rest.

    Segments are filled one after another, from the shortest to the longest, which is segment 0.
    """
    limits = limits.at[0].set(0)
    large_enough = sum_in_parts(limits[:, None] >= lengths[None, :])  # segments 1 … large_enough can hold the span

    def assign(state, span):
        segment, taken, limit = state
        size, last_segment, active = span
        fits = (segment > 0) & (taken + size <= limit)
        following = jnp.clip(jnp.minimum(segment - 1, last_segment), 0)
        segment = jnp.where(active & ~fits, following, segment)
        taken = jnp.where(fits, taken + size, size)
        return (segment, taken, limits[segment]), segment

    start = (jnp.int32(limits.size - 1), jnp.int32(0), limits[limits.size - 1])
    _, segment = jax.lax.scan(assign, start, (lengths, large_enough, used))
    return segment


def _draw_per_segment(bits, limits, weights, max_targets, single):
    """Lengths [S], which are used, and their segments, if every segment takes spans until it reaches its limit."""
    lengths = _sample_lengths(bits, weights)

    def assign(state, size):  # segments are filled from the longest to the shortest
        segment, taken = state
        full = (taken >= limits[segment]) | (single & (taken > 0))
        segment = jnp.minimum(segment + full, limits.size - 1)
        taken = jnp.where(full, 0, taken) + size
        return (segment, taken), segment

    _, segment = jax.lax.scan(assign, (jnp.int32(0), jnp.int32(0)), lengths)
    used = limits[segment] > 0
    targets = jnp.cumsum(jnp.where(used, lengths + 1, 0))  # grows without limit once the last segment is full
    used &= targets <= max_targets
    return jnp.where(used, lengths, 0), used, segment


def _place_in_segments(bits, extra_bits, lengths, used, segment, segment_starts, segment_lengths):
    """Starts and lengths [S] of spans with random gaps inside their segments; what does not fit gets length 0."""
    index = jnp.arange(used.size)
    same_segment = (segment[:, None] == segment[None, :]) & used[:, None] & used[None, :]
    earlier = same_segment & (index[:, None] < index[None, :])
    segment_length = segment_lengths[segment]
    previous = sum_in_parts(jnp.where(earlier, lengths[:, None] + 1, 0))  # earlier spans, and a token after each
    used &= previous + lengths <= segment_length
    lengths = jnp.where(used, lengths, 0)
    same_segment &= used[:, None] & used[None, :]

    # The original draws a gap from 0 … choices - 1 for each span, and sorts the gaps.
    total = sum_in_parts(jnp.where(same_segment, lengths[:, None], 0))
    choices = segment_length - total - sum_in_parts(same_segment) + 2
    # k sorted uniforms: partial sums of k + 1 exponentials, divided by their total.
    step, extra_step = exponential(bits), exponential(extra_bits)
    partial_sum = jnp.where(same_segment & (index[:, None] <= index[None, :]), step[:, None], 0).sum(0)
    is_first = sum_in_parts(earlier) == 0
    total_sum = jnp.where(same_segment, (step + jnp.where(is_first, extra_step, 0))[:, None], 0).sum(0)
    gap = jnp.floor(partial_sum / jnp.where(used, total_sum, 1) * choices).astype(jnp.int32)
    gap = jnp.minimum(gap, choices - 1)
    return segment_starts[segment] + previous + gap, lengths


# ---------------------------------------------------------------------------- sentences and documents


def sentences(
    row_bits: UInt32[Array, "L"],
    bits: UInt32[Array, "S"],
    tokens: Int[Array, "L"],
    length: Int[Array, ""],
    subsequence_starts: Int[Array, "W"],
    is_end: Bool[Array, "L"],
    *,
    ratio: float,
    max_targets: int,
    cls: int,
    eos: int,
    shuffle: bool,
) -> Spans:
    """Whole sentences in random order until `ratio` of every subsequence is masked, at least one (paper, section 2.2).

    A sentence ends with a token for which `is_end` holds; text between the last such token and a document's end is
    no candidate, except at the end of a subsequence. A [CLS] inside a subsequence belongs to the sentence that follows.
    """
    row = tokens.size
    begin, is_candidate = _sentence_candidates(tokens, length, subsequence_starts, is_end, cls, eos)
    key = jnp.where(is_candidate, 1.0 + (row_bits >> 8).astype(jnp.float32), 0.0)
    drawn, end = jax.lax.top_k(key, bits.size)
    starts = begin[end]
    lengths = jnp.where(drawn > 0, end + 1 - starts, 0)

    # The first sentence of each subsequence, and those that follow while `ratio` is not reached.
    index = jnp.arange(bits.size)
    subsequence = subsequence_ids(subsequence_starts, end)
    earlier = (index[:, None] < index[None, :]) & (subsequence[:, None] == subsequence[None, :])
    previous = sum_in_parts(jnp.where(earlier, lengths[:, None], 0))
    limit = num_masked_tokens(ratio, subsequence_lengths(subsequence_starts, length)[subsequence - 1], row)
    chosen = (lengths > 0) & ((sum_in_parts(earlier) == 0) | (previous < limit))
    sizes = jnp.where(chosen, lengths + 1, 0)
    targets = sum_in_parts(jnp.where(index[:, None] <= index[None, :], sizes[:, None], 0))
    lengths = jnp.where(chosen & (targets <= max_targets), lengths, 0)
    return Spans(*_part_b_order(bits, starts, lengths, shuffle), jnp.ones(bits.size, bool))


def _sentence_candidates(tokens, length, subsequence_starts, is_end, cls, eos):
    """Where the sentence that contains each column begins, int32 [L], and whether the column ends a candidate."""
    row = tokens.size
    index = jnp.arange(row)
    in_row = index < length
    is_end = is_end & in_row
    boundary = is_end | ((tokens == eos) & in_row)
    unfinished = _ends_subsequence(subsequence_starts, length, row) & ~boundary
    last = jax.lax.cummax(jnp.where(boundary, index + 1, 0))
    opening = (subsequence_starts[:, None] == index[None, :]).any(0) & (tokens == cls)
    # A sentence begins after the last one, and after the [CLS] of its subsequence.
    begin = jnp.maximum(jnp.roll(last, 1).at[0].set(0), jax.lax.cummax(jnp.where(opening, index + 1, 0)))
    return begin, (is_end | unfinished) & (begin <= index)


def document(
    bits: UInt32[Array, "3 W"],
    tokens: Int[Array, "L"],
    length: Int[Array, ""],
    subsequence_starts: Int[Array, "W"],
    *,
    min_ratio: float,
    suffix_prob: float,
    max_spans: int,
    cls: int,
    eos: int,
) -> Spans:
    """One long span per subsequence: its end, or a blank anywhere if it holds one document (paper, section 2.2).

    The length is uniform over int(min_ratio · n) … n - 2. A suffix has no end token: it ends where the subsequence
    ends. A row that is not cut is its own only subsequence.
    """
    row = tokens.size
    index = jnp.arange(row)
    lengths = subsequence_lengths(subsequence_starts, length)
    first, last = subsequence_starts[:, None], (subsequence_starts + lengths - 1)[:, None]
    min_generated = num_masked_tokens(min_ratio, lengths, row)
    if subsequence_starts.size > 1:  # every subsequence of a cut row has a span, so that unused spans come last
        min_generated = jnp.maximum(min_generated, subsequence_starts[1] < UNUSED)
    max_generated = jnp.maximum(lengths - 2, 0)
    min_generated = jnp.minimum(min_generated, max_generated)
    generated = min_generated + uniform_int(bits[0], max_generated - min_generated + 1)

    several_documents = ((tokens == eos)[None, :] & (first <= index[None, :]) & (index[None, :] < last)).any(1)
    is_suffix = several_documents | bernoulli(bits[1], suffix_prob)
    has_cls = (tokens[jnp.minimum(subsequence_starts, row - 1)] == cls).astype(jnp.int32)
    usable = jnp.maximum(lengths - 1 - has_cls, 0)  # neither [CLS] nor the last token
    generated = jnp.where(is_suffix, generated, jnp.minimum(generated, usable))
    blank_start = has_cls + uniform_int(bits[2], usable - generated + 1)
    starts = subsequence_starts + jnp.where(is_suffix, lengths - generated, blank_start)
    used = generated > 0
    padding = (0, max_spans - used.size)
    return Spans(
        jnp.pad(jnp.where(used, starts, UNUSED), padding, constant_values=UNUSED),
        jnp.pad(jnp.where(used, generated, 0), padding),
        jnp.pad(~is_suffix, padding, constant_values=True),
    )
