"""Which spans become blanks: the three laws of the paper, sampled without data-dependent shapes.

Everything here works on one example and is vectorised with `jax.vmap`. A sort or a scatter over the row would cost
more than all the rest, so order is found by comparing S × S small arrays and sorted uniform draws come from
normalised sums of exponentials.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

UNUSED = 2**16  # start of a slot without a span: behind every row


class Spans(NamedTuple):
    """Blanks of one example in the order of Part B. Unused slots come last and have length 0."""

    starts: Int[Array, "S"]  # first raw token of the span
    lengths: Int[Array, "S"]
    closed: Bool[Array, ""]  # whether answers end with the end token (not in suffix generation)


class Capacity(NamedTuple):
    """Static sizes of a corrupted example, and how often they bite."""

    max_spans: int  # S
    max_targets: int  # K
    cap_rate: float  # probability that blank infilling draws a span that does not fit S or K


def length_weights(average: float, longest: int) -> np.ndarray:
    """Poisson(`average`) probabilities of the lengths 1 … `longest`, renormalised (paper, section 2.1)."""
    lengths = np.arange(1, longest + 1)
    log_weights = lengths * math.log(average) - average - np.array([math.lgamma(n + 1) for n in lengths])
    weights = np.exp(log_weights)
    return weights / weights.sum()


def budgets(ratio: float, longest: int) -> np.ndarray:
    """int(ratio · n) for n = 0 … `longest`, in double precision as the original computes it."""
    return np.array([int(ratio * n) for n in range(longest + 1)], np.int32)


@functools.cache
def infilling_capacity(length: int, ratio: float, average: float, longest: int, rate: float) -> Capacity:
    """The smallest S and K that blank infilling of `length` tokens overflows with probability `rate` at most.

    Exact: the law of (number of draws, masked tokens) when lengths are drawn until int(ratio · length) is reached.
    """
    budget = int(ratio * length)
    if budget == 0:
        return Capacity(1, 1, 0.0)
    weights = length_weights(average, longest)
    alive = np.zeros(budget)  # probability of each sum below the budget after c draws
    alive[0] = 1.0
    stopped = []  # per number of draws: probability of stopping with that many masked tokens
    for _ in range(budget):
        total = np.convolve(alive, np.concatenate([[0.0], weights]))
        stopped.append(total[budget:])
        alive = total[:budget]
    count_law = np.array([s.sum() for s in stopped])
    above = 1 - np.cumsum(count_law)
    max_spans = int(np.argmax(above <= rate / 2)) + 1
    targets_law = np.zeros(2 * budget + longest + 1)
    for draws, law in enumerate(stopped[:max_spans], start=1):
        for over, probability in enumerate(law):
            targets_law[budget + over + draws] += probability
    tail = targets_law.sum() - np.cumsum(targets_law)
    max_targets = int(np.argmax(tail <= rate / 2))
    return Capacity(max_spans, max_targets, float(above[max_spans - 1] + max(tail[max_targets], 0.0)))


def below(bits: UInt32[Array, "..."], bound: int | Int[Array, "..."]) -> Int[Array, "..."]:
    """Uniform integer in [0, bound) from 32 random bits, 0 < bound < 2^16, biased by at most bound / 2^32."""
    bound = jnp.asarray(bound).astype(jnp.uint32)
    high, low = bits >> 16, bits & 0xFFFF
    return ((high * bound + ((low * bound) >> 16)) >> 16).astype(jnp.int32)


def chance(bits: UInt32[Array, "..."], probability: float) -> Bool[Array, "..."]:
    """True with `probability`; exact at 0 and 1."""
    if probability >= 1:
        return jnp.ones_like(bits, bool)
    return bits < np.uint32(probability * 2**32)


def _exponential(bits: UInt32[Array, "..."]) -> Array:
    return -jnp.log(((bits >> 8).astype(jnp.float32) + 0.5) * np.float32(2**-24))


def _rank(keys: Array, used: Bool[Array, "S"]) -> Int[Array, "S"]:
    """Rank of each used key among the used ones; ties by index."""
    index = jnp.arange(keys.size)
    earlier = (keys[:, None] < keys[None, :]) | ((keys[:, None] == keys[None, :]) & (index[:, None] < index[None, :]))
    return (earlier & used[:, None]).sum(0)


def in_part_b_order(
    bits: UInt32[Array, "S"], starts: Int[Array, "S"], lengths: Int[Array, "S"], shuffle: bool
) -> tuple[Int[Array, "S"], Int[Array, "S"]]:
    """Starts and lengths, uniformly permuted or left to right when `shuffle` is False; unused slots last."""
    used = lengths > 0
    slot = jnp.arange(used.size)
    moves = (_rank(bits if shuffle else starts, used)[:, None] == slot[None, :]) & used[:, None]
    free = slot >= used.sum()
    starts = jnp.where(moves, starts[:, None], 0).sum(0)
    return jnp.where(free, UNUSED, starts), jnp.where(moves, lengths[:, None], 0).sum(0)


def draw_lengths(
    bits: UInt32[Array, "S"], budget: Int[Array, ""], weights: np.ndarray, max_targets: int, single: Bool[Array, ""]
) -> tuple[Int[Array, "S"], Bool[Array, "S"]]:
    """Lengths drawn until their sum reaches `budget` (exactly one if `single`), and which slots were drawn.

    The last draw is not trimmed (as in the original). Drawing stops early at S spans or `max_targets` targets.
    """
    thresholds = np.minimum(np.round(np.cumsum(weights)[:-1] * 2**32), 2**32 - 1).astype(np.uint32)
    lengths = 1 + (bits[:, None] >= thresholds[None, :]).sum(1)
    index = jnp.arange(lengths.size)
    before = jnp.where(index[:, None] < index[None, :], lengths[:, None], 0).sum(0)
    drawn = jnp.where(single, index == 0, before < budget) & (before + lengths + index + 1 <= max_targets)
    return jnp.where(drawn, lengths, 0), drawn


def segments(
    tokens: Int[Array, "L"], length: Int[Array, ""], cls: int, eos: int, max_segments: int
) -> tuple[Int[Array, "D"], Int[Array, "D"]]:
    """Starts and usable lengths of a row's documents, longest first; equally long ones in row order.

    Document boundaries and a [CLS] are never part of a segment; nor is the last token of a row that was cut off.
    """
    row = tokens.size
    index = jnp.arange(row)
    ends = ((tokens == eos) | (index == length - 1)) & (index < length)
    is_cls = (tokens == cls).astype(jnp.int32)
    after = jnp.where(ends, index + 1 + jnp.roll(is_cls, -1), 0)
    first = jnp.maximum(jnp.roll(jax.lax.cummax(after), 1).at[0].set(0), is_cls[0])
    usable = jnp.where(ends, jnp.maximum(index - first, 0), 0)
    key = usable * (row + 1) + jnp.where(usable > 0, row - index, 0)
    # top_k has a fast path for float32 only, exact up to 2^24.
    key = key.astype(jnp.float32) if (row + 1) ** 2 < 2**24 else key
    top, end = jax.lax.top_k(key, max_segments)
    lengths = top.astype(jnp.int32) // (row + 1)
    return end - lengths, lengths


def blank_infilling(
    bits: UInt32[Array, "5 S"],
    tokens: Int[Array, "L"],
    length: Int[Array, ""],
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

    Shorter documents of a row take spans first, up to `ratio` of their own length; the longest takes the rest. Inside
    a document spans never touch, and the gaps are sorted independent draws, not uniform over placements: that is what
    the original does. Spans that fit nowhere stay unmasked, where the original drops the whole example.
    """
    row = tokens.size
    drawn_lengths, drawn = draw_lengths(bits[0], jnp.asarray(budgets(ratio, row))[length], weights, max_targets, single)
    count = drawn.sum()
    slot = jnp.arange(drawn.size)
    place = jnp.where(drawn, _rank(bits[1], drawn), -1)
    lengths = jnp.where(place[:, None] == slot[None, :], drawn_lengths[:, None], 0).sum(0)  # in random order
    used = slot < count

    # Only a segment with a budget of one token can take a span, so fewer than row / (1/ratio + 2) of them matter.
    max_segments = min(row, row // (math.ceil(1 / ratio) + 2) + 2) if ratio < 1 else row
    segment_starts, segment_lengths = segments(tokens, length, cls, eos, max_segments)
    segment_budgets = jnp.asarray(budgets(ratio, row))[segment_lengths].at[0].set(0)
    roomy = (segment_budgets[:, None] >= lengths[None, :]).sum(0)  # segments 1 … roomy can hold the span

    def assign(state, span):  # segments are visited from the shortest to the longest (index 0)
        segment, taken, budget = state
        size, reach, active = span
        stay = (segment > 0) & (taken + size <= budget)
        moved = jnp.clip(jnp.minimum(segment - 1, reach), 0)
        segment = jnp.where(active & ~stay, moved, segment)
        taken = jnp.where(stay, taken + size, size)
        return (segment, taken, segment_budgets[segment]), segment

    start = (jnp.int32(max_segments - 1), jnp.int32(0), segment_budgets[max_segments - 1])
    _, segment = jax.lax.scan(assign, start, (lengths, roomy, used))

    same = (segment[:, None] == segment[None, :]) & used[:, None] & used[None, :]
    earlier = same & (slot[:, None] < slot[None, :])
    room = segment_lengths[segment]
    prior = jnp.where(earlier, lengths[:, None] + 1, 0).sum(0)
    used &= (segment > 0) | (prior + lengths <= room)
    lengths = jnp.where(used, lengths, 0)
    same &= used[:, None] & used[None, :]

    total = jnp.where(same, lengths[:, None], 0).sum(0)
    free = room - total - same.sum(0) + 2  # the original draws a gap from 0 … free - 1 for each span, and sorts
    exponential, extra = _exponential(bits[2]), _exponential(bits[3])
    up_to = jnp.where(same & (slot[:, None] <= slot[None, :]), exponential[:, None], 0).sum(0)
    first_of_segment = ~earlier.any(0)
    whole = jnp.where(same, (exponential + jnp.where(first_of_segment, extra, 0))[:, None], 0).sum(0)
    gap = jnp.floor(up_to / jnp.where(used, whole, 1) * free).astype(jnp.int32)
    gap = jnp.minimum(gap, free - 1)
    starts = segment_starts[segment] + prior + gap
    return Spans(*in_part_b_order(bits[4], starts, lengths, shuffle), jnp.bool_(True))


def sentences(
    row_bits: UInt32[Array, "L"],
    bits: UInt32[Array, "S"],
    tokens: Int[Array, "L"],
    length: Int[Array, ""],
    is_end: Bool[Array, "L"],
    *,
    ratio: float,
    max_targets: int,
    cls: int,
    eos: int,
    shuffle: bool,
) -> Spans:
    """Whole sentences in random order until `ratio` of the row is masked, at least one (paper, section 2.2).

    A sentence ends with a token for which `is_end` holds; text between the last such token and a document's end is
    no candidate, except at the end of the row. A [CLS] inside the row belongs to the sentence that it opens.
    """
    row = tokens.size
    index = jnp.arange(row)
    inside = index < length
    is_end = is_end & inside
    boundary = is_end | ((tokens == eos) & inside)
    last = jax.lax.cummax(jnp.where(boundary, index + 1, 0))
    begin = jnp.maximum(jnp.roll(last, 1).at[0].set(0), (tokens[0] == cls).astype(last.dtype))
    closing = is_end | ((index == length - 1) & ~boundary)  # the row's unfinished rest is a candidate too
    candidate = closing & (begin <= index)
    slots = bits.size
    key = jnp.where(candidate, 1.0 + (row_bits >> 8).astype(jnp.float32), 0.0)
    drawn, end = jax.lax.top_k(key, slots)
    starts = begin[end]
    lengths = jnp.where(drawn > 0, end + 1 - starts, 0)
    slot = jnp.arange(slots)
    before = jnp.where(slot[:, None] < slot[None, :], lengths[:, None], 0).sum(0)
    budget = jnp.asarray(budgets(ratio, row))[length]
    used = (lengths > 0) & ((slot == 0) | (before < budget)) & (before + lengths + slot + 1 <= max_targets)
    lengths = jnp.where(used, lengths, 0)
    return Spans(*in_part_b_order(bits, starts, lengths, shuffle), jnp.bool_(True))


def document(
    bits: UInt32[Array, "3"],
    tokens: Int[Array, "L"],
    length: Int[Array, ""],
    *,
    min_ratio: float,
    suffix_prob: float,
    slots: int,
    cls: int,
    eos: int,
) -> Spans:
    """One long span: the row's end, or one blank anywhere in a row that holds one document (paper, section 2.2).

    The length is uniform over int(min_ratio · n) … n - 2. A suffix has no end token: it ends where the row ends.
    """
    row = tokens.size
    index = jnp.arange(row)
    least = jnp.asarray(budgets(min_ratio, row))[length]
    most = jnp.maximum(length - 2, 0)
    least = jnp.minimum(least, most)
    generated = least + below(bits[0], most - least + 1)
    several = ((tokens == eos) & (index < length - 1)).any()
    suffix = several | chance(bits[1], suffix_prob)
    usable_start = (tokens[0] == cls).astype(jnp.int32)
    usable = jnp.maximum(length - 1 - usable_start, 0)  # neither [CLS] nor the row's last token
    generated = jnp.where(suffix, generated, jnp.minimum(generated, usable))
    anywhere = usable_start + below(bits[2], usable - generated + 1)
    start = jnp.where(suffix, length - generated, anywhere)
    used = (jnp.arange(slots) == 0) & (generated > 0)
    return Spans(jnp.where(used, start, UNUSED), jnp.where(used, generated, 0), jnp.logical_not(suffix))
