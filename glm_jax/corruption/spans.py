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

UNUSED = 2**16  # start of a slot without a span or piece: behind every row


class Spans(NamedTuple):
    """Blanks of one example in the order of Part B. Unused slots come last and have length 0."""

    starts: Int[Array, "S"]  # first raw token of the span
    lengths: Int[Array, "S"]
    closed: Bool[Array, "S"]  # whether the answer ends with the end token (not in suffix generation)


class Capacity(NamedTuple):
    """Static sizes of a corrupted example, and how often they bite."""

    max_spans: int  # S
    max_targets: int  # K
    overflow_prob: float  # probability that blank infilling draws a span that does not fit S or K


def length_weights(average: float, longest: int) -> np.ndarray:
    """Poisson(`average`) probabilities of the lengths 1 … `longest`, renormalised (paper, section 2.1)."""
    lengths = np.arange(1, longest + 1)
    log_weights = lengths * math.log(average) - average - np.array([math.lgamma(n + 1) for n in lengths])
    weights = np.exp(log_weights)
    return weights / weights.sum()


def budget(ratio: float, lengths: Int[Array, "*shape"], longest: int) -> Int[Array, "*shape"]:
    """int(ratio · n) of lengths n up to `longest`, in double precision as the original computes it.

    By a product and a shift of whole numbers where that is the same for all n: a TPU looks up a table slowly, and
    libtpu 0.0.50 fails to compile that lookup for v5p.
    """
    table, scaled = _budgets(ratio, longest)
    return jnp.asarray(table)[lengths] if scaled is None else (lengths * scaled[0]) >> scaled[1]


@functools.cache
def _budgets(ratio, longest):
    """The table int(ratio · n), and the first (factor, shift) that gives it in 32 bits, or None."""
    table, numbers = np.array([int(ratio * n) for n in range(longest + 1)], np.int32), np.arange(longest + 1)
    for shift in range(31):
        factor = math.ceil(ratio * 2**shift)
        if factor * longest < 2**31 and ((numbers * factor) >> shift == table).all():
            return table, (factor, shift)
    return table, None


@functools.cache
def infilling_capacity(
    length: int, ratio: float, average: float, longest: int, rate: float, pieces: int = 1
) -> Capacity:
    """The smallest S and K that blank infilling of `pieces` times `length` tokens overflows with probability `rate`."""
    if int(ratio * length) == 0:
        return Capacity(1, 1, 0.0)
    count_law, targets_law = _infilling_laws(length, ratio, average, longest)
    counts, targets = np.ones(1), np.ones(1)
    for _ in range(pieces):
        counts, targets = np.convolve(counts, count_law), np.convolve(targets, targets_law)
    more_spans, more_targets = 1 - np.cumsum(counts), 1 - np.cumsum(targets)
    max_spans, max_targets = (int(np.argmax(more <= rate / 2)) for more in (more_spans, more_targets))
    return Capacity(max_spans, max_targets, float(more_spans[max_spans] + max(more_targets[max_targets], 0.0)))


@functools.cache
def spans_with_room(length: int, ratio: float, average: float, longest: int, rate: float) -> int:
    """The fewest spans that T needs room for, if rows of more are cut by two tokens for each: `rate` of all tokens."""
    if int(ratio * length) == 0:
        return 1
    law, _ = _infilling_laws(length, ratio, average, longest)
    count = np.arange(law.size)
    cut = [2 * (law * np.maximum(count - room, 0)).sum() / length for room in count]
    return max(int(np.argmax(np.array(cut) <= rate)), 1)


@functools.cache
def _infilling_laws(length, ratio, average, longest):
    """How probable each number of spans and of targets is, exactly: lengths are drawn until int(ratio · length)."""
    budget = int(ratio * length)
    weights = length_weights(average, longest)
    alive = np.zeros(budget)  # probability of each sum below the budget after c draws
    alive[0] = 1.0
    count_law, targets_law = np.zeros(budget + 1), np.zeros(2 * budget + longest + 1)
    for draws in range(1, budget + 1):
        total = np.convolve(alive, np.concatenate([[0.0], weights]))
        stopped, alive = total[budget:], total[:budget]  # stopped: with that many masked tokens
        count_law[draws] = stopped.sum()
        targets_law[budget + draws : budget + draws + stopped.size] += stopped
    return count_law, targets_law


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


def summed(values: Array) -> Array:
    """The sum of integers or truth values over axis 0."""
    # More than 32 at once XLA's CPU backend writes to memory before it adds them.
    return sum(values[first : first + 32].sum(0) for first in range(0, len(values), 32))


def _exponential(bits: UInt32[Array, "..."]) -> Array:
    return -jnp.log(((bits >> 8).astype(jnp.float32) + 0.5) * np.float32(2**-24))


def _rank(keys: Array, used: Bool[Array, "S"]) -> Int[Array, "S"]:
    """Rank of each used key among the used ones; ties by index."""
    index = jnp.arange(keys.size)
    earlier = (keys[:, None] < keys[None, :]) | ((keys[:, None] == keys[None, :]) & (index[:, None] < index[None, :]))
    return summed(earlier & used[:, None])


def in_part_b_order(
    bits: UInt32[Array, "S"], starts: Int[Array, "S"], lengths: Int[Array, "S"], shuffle: bool
) -> tuple[Int[Array, "S"], Int[Array, "S"]]:
    """Starts and lengths, uniformly permuted or left to right when `shuffle` is False; unused slots last."""
    used = lengths > 0
    slot = jnp.arange(used.size)
    moves = (_rank(bits if shuffle else starts, used)[:, None] == slot[None, :]) & used[:, None]
    free = slot >= used.sum()
    starts = summed(jnp.where(moves, starts[:, None], 0))
    return jnp.where(free, UNUSED, starts), summed(jnp.where(moves, lengths[:, None], 0))


def _lengths(bits, weights):
    thresholds = np.minimum(np.round(np.cumsum(weights)[:-1] * 2**32), 2**32 - 1).astype(np.uint32)
    return 1 + summed(thresholds[:, None] <= bits[None, :])


def draw_lengths(
    bits: UInt32[Array, "S"], budget: Int[Array, ""], weights: np.ndarray, max_targets: int, single: Bool[Array, ""]
) -> tuple[Int[Array, "S"], Bool[Array, "S"]]:
    """Lengths drawn until their sum reaches `budget` (exactly one if `single`), and which slots were drawn.

    The last draw is not trimmed (as in the original). Drawing stops early at S spans or `max_targets` targets.
    """
    lengths = _lengths(bits, weights)
    index = jnp.arange(lengths.size)
    before = summed(jnp.where(index[:, None] < index[None, :], lengths[:, None], 0))
    drawn = jnp.where(single, index == 0, before < budget) & (before + lengths + index + 1 <= max_targets)
    return jnp.where(drawn, lengths, 0), drawn


def piece_of(starts: Int[Array, "W"], columns: Int[Array, "N"]) -> Int[Array, "N"]:
    """Which piece of the row, from 1, each column belongs to."""
    return summed(starts[:, None] <= columns[None, :])


def piece_lengths(starts: Int[Array, "W"], length: Int[Array, ""]) -> Int[Array, "W"]:
    """Tokens of each piece of a row of `length` tokens; 0 where there is none."""
    behind = jnp.minimum(jnp.concatenate([starts[1:], jnp.full(1, UNUSED, starts.dtype)]), length)
    return jnp.maximum(behind - starts, 0)


def _ends_piece(starts, length, row):
    """Whether a column is the last of its piece, bool [L]."""
    index = jnp.arange(row)
    return (index == length - 1) | ((starts[:, None] == index[None, :] + 1).any(0) & (index < length))


def segments(
    tokens: Int[Array, "L"], length: Int[Array, ""], pieces: Int[Array, "W"], cls: int, eos: int, max_segments: int
) -> tuple[Int[Array, "D"], Int[Array, "D"]]:
    """Starts and usable lengths of the documents in a row's pieces, longest first; equally long ones in row order.

    Document boundaries and a [CLS] are never part of a segment; nor is the last token of a piece that was cut off.
    """
    row = tokens.size
    index = jnp.arange(row)
    ends = ((tokens == eos) & (index < length)) | _ends_piece(pieces, length, row)
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
    pieces: Int[Array, "W"],
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
    of several `pieces` (their first columns) every piece is masked like a row. Inside a document spans never touch, and
    the gaps are sorted independent draws, not uniform over placements: that is what the original does. Spans that fit
    nowhere stay unmasked, where the original drops the whole example.
    """
    row = tokens.size
    budget_of = functools.partial(budget, ratio, longest=row)
    drawn_lengths, drawn = draw_lengths(bits[0], budget_of(length), weights, max_targets, single)
    slot = jnp.arange(drawn.size)
    place = jnp.where(drawn, _rank(bits[1], drawn), -1)
    lengths = summed(jnp.where(place[:, None] == slot[None, :], drawn_lengths[:, None], 0))  # in random order
    used = slot < drawn.sum()

    # Only a segment with a budget of one token can take a span, so fewer than row / (1/ratio + 2) of them matter.
    max_segments = min(row, row // (math.ceil(1 / ratio) + 2) + 2) if ratio < 1 else row
    segment_starts, segment_lengths = segments(tokens, length, pieces, cls, eos, max_segments)
    segment_budgets = budget_of(segment_lengths).at[0].set(0)
    roomy = summed(segment_budgets[:, None] >= lengths[None, :])  # segments 1 … roomy can hold the span

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
    if pieces.size > 1:
        several = pieces[1] < UNUSED
        # A row's budget counts its [CLS] and its last token, of which a segment knows nothing.
        enough = jnp.where(segment_lengths > 0, budget_of(jnp.minimum(segment_lengths + 2, row)), 0)
        by_piece = _draw_by_segment(bits[0], segment_lengths, enough, weights, max_targets, single)
        whole_row = lengths, used, segment
        lengths, used, segment = jax.tree.map(functools.partial(jnp.where, several), by_piece, whole_row)

    same = (segment[:, None] == segment[None, :]) & used[:, None] & used[None, :]
    earlier = same & (slot[:, None] < slot[None, :])
    room = segment_lengths[segment]
    prior = summed(jnp.where(earlier, lengths[:, None] + 1, 0))
    used &= prior + lengths <= room
    lengths = jnp.where(used, lengths, 0)
    same &= used[:, None] & used[None, :]

    total = summed(jnp.where(same, lengths[:, None], 0))
    free = room - total - summed(same) + 2  # the original draws a gap from 0 … free - 1 for each span, and sorts
    exponential, extra = _exponential(bits[2]), _exponential(bits[3])
    up_to = jnp.where(same & (slot[:, None] <= slot[None, :]), exponential[:, None], 0).sum(0)
    first_of_segment = summed(earlier) == 0
    whole = jnp.where(same, (exponential + jnp.where(first_of_segment, extra, 0))[:, None], 0).sum(0)
    gap = jnp.floor(up_to / jnp.where(used, whole, 1) * free).astype(jnp.int32)
    gap = jnp.minimum(gap, free - 1)
    starts = segment_starts[segment] + prior + gap
    return Spans(*in_part_b_order(bits[4], starts, lengths, shuffle), jnp.ones_like(used))


def _draw_by_segment(bits, segment_lengths, enough, weights, max_targets, single):
    """Lengths [S], which are used, and their segments, when every segment takes spans until it has `enough`."""
    lengths = _lengths(bits, weights)

    def visit(state, size):  # from the longest to the shortest
        segment, taken = state
        full = (taken >= enough[segment]) | (single & (taken > 0))
        segment = jnp.minimum(segment + full, enough.size - 1)
        taken = jnp.where(full, 0, taken) + size
        return (segment, taken), segment

    _, segment = jax.lax.scan(visit, (jnp.int32(0), jnp.int32(0)), lengths)
    used = enough[segment] > 0
    # The last segment may be visited for ever.
    laid = jnp.cumsum(jnp.where(used, lengths + 1, 0))
    used &= laid <= max_targets
    return jnp.where(used, lengths, 0), used, segment


def sentences(
    row_bits: UInt32[Array, "L"],
    bits: UInt32[Array, "S"],
    tokens: Int[Array, "L"],
    length: Int[Array, ""],
    pieces: Int[Array, "W"],
    is_end: Bool[Array, "L"],
    *,
    ratio: float,
    max_targets: int,
    cls: int,
    eos: int,
    shuffle: bool,
) -> Spans:
    """Whole sentences in random order until `ratio` of every piece is masked, at least one (paper, section 2.2).

    A sentence ends with a token for which `is_end` holds; text between the last such token and a document's end is
    no candidate, except at the end of a piece. A [CLS] inside a piece belongs to the sentence that it opens. `pieces`
    are the first columns of the row's pieces.
    """
    row = tokens.size
    index = jnp.arange(row)
    inside = index < length
    is_end = is_end & inside
    boundary = is_end | ((tokens == eos) & inside)
    rest = _ends_piece(pieces, length, row) & ~boundary  # a piece's unfinished rest is a candidate too
    last = jax.lax.cummax(jnp.where(boundary, index + 1, 0))
    opening = (pieces[:, None] == index[None, :]).any(0) & (tokens == cls)
    # A sentence begins behind the last one, and behind the [CLS] of its piece.
    begin = jnp.maximum(jnp.roll(last, 1).at[0].set(0), jax.lax.cummax(jnp.where(opening, index + 1, 0)))
    candidate = (is_end | rest) & (begin <= index)
    slots = bits.size
    key = jnp.where(candidate, 1.0 + (row_bits >> 8).astype(jnp.float32), 0.0)
    drawn, end = jax.lax.top_k(key, slots)
    starts = begin[end]
    lengths = jnp.where(drawn > 0, end + 1 - starts, 0)
    slot = jnp.arange(slots)
    piece = piece_of(pieces, end)
    earlier = (slot[:, None] < slot[None, :]) & (piece[:, None] == piece[None, :])
    before = summed(jnp.where(earlier, lengths[:, None], 0))
    room = budget(ratio, piece_lengths(pieces, length)[piece - 1], row)
    wanted = (lengths > 0) & ((summed(earlier) == 0) | (before < room))
    laid = summed(jnp.where(slot[:, None] <= slot[None, :], jnp.where(wanted, lengths + 1, 0)[:, None], 0))
    lengths = jnp.where(wanted & (laid <= max_targets), lengths, 0)
    return Spans(*in_part_b_order(bits, starts, lengths, shuffle), jnp.ones(slots, bool))


def document(
    bits: UInt32[Array, "3 W"],
    tokens: Int[Array, "L"],
    length: Int[Array, ""],
    pieces: Int[Array, "W"],
    *,
    min_ratio: float,
    suffix_prob: float,
    slots: int,
    cls: int,
    eos: int,
) -> Spans:
    """One long span a piece: its end, or a blank anywhere if it holds one document (paper, section 2.2).

    The length is uniform over int(min_ratio · n) … n - 2. A suffix has no end token: it ends where the piece ends.
    `pieces` are the first columns of the row's pieces; for an uncut row it is the row.
    """
    row = tokens.size
    index = jnp.arange(row)
    lengths = piece_lengths(pieces, length)
    first, last = pieces[:, None], (pieces + lengths - 1)[:, None]
    least = budget(min_ratio, lengths, row)
    most = jnp.maximum(lengths - 2, 0)
    least = jnp.minimum(least, most)
    generated = least + below(bits[0], most - least + 1)
    several = ((tokens == eos)[None, :] & (first <= index[None, :]) & (index[None, :] < last)).any(1)
    suffix = several | chance(bits[1], suffix_prob)
    opened = (tokens[jnp.minimum(pieces, row - 1)] == cls).astype(jnp.int32)
    usable = jnp.maximum(lengths - 1 - opened, 0)  # neither [CLS] nor the last token
    generated = jnp.where(suffix, generated, jnp.minimum(generated, usable))
    anywhere = opened + below(bits[2], usable - generated + 1)
    starts = pieces + jnp.where(suffix, lengths - generated, anywhere)
    used = generated > 0
    behind = (0, slots - used.size)
    return Spans(
        jnp.pad(jnp.where(used, starts, UNUSED), behind, constant_values=UNUSED),
        jnp.pad(jnp.where(used, generated, 0), behind),
        jnp.pad(~suffix, behind, constant_values=True),
    )


def longest_context(length: int, min_ratio: float) -> int:
    """The most tokens that `document` leaves of a row of up to `length` in one piece, with the mask."""
    rows = np.arange(length + 1)
    least = np.minimum(_budgets(min_ratio, length)[0], np.maximum(rows - 2, 0))
    return int((rows - least + 1).max())
