"""The cuts of `subsequences.py` and the spans of `spans.py` for one example, in NumPy and plain loops.

The samplers return the spans in the order of Part B, as pairs (start, length). The tests compare them with the
vectorised samplers.
"""

import functools
from typing import NamedTuple

import numpy as np

from glm_jax.corruption import numpy_random as random
from glm_jax.corruption.capacity import length_thresholds, length_weights, max_infilling_segments
from glm_jax.corruption.config import MIN_SUBSEQUENCE_LENGTH


class Sizes(NamedTuple):
    """What follows from the config and the row length alone."""

    row: int  # L
    columns: int  # T
    spans: int  # S
    targets: int  # K
    subsequences: int  # W
    row_spans: int  # spans that T has room for
    length_thresholds: np.ndarray


@functools.lru_cache(maxsize=64)
def sizes_of(config, row):
    """The sizes of examples from rows of `row` tokens."""
    capacity = config.capacity(row)
    weights = length_weights(config.average_span_length, config.max_span_length)
    return Sizes(
        row, config.sequence_length(row), capacity.max_spans, capacity.max_targets, config.max_subsequences(row),
        config.row_spans(row), length_thresholds(weights),
    )  # fmt: skip


class Example(NamedTuple):
    """A row, cut into subsequences or whole."""

    text: np.ndarray  # tokens without padding
    starts: list[int]  # first column of each subsequence
    origin: np.ndarray  # column of each token in the raw row; L for an inserted [CLS]

    def stops(self):
        """The column after each subsequence."""
        return [*self.starts[1:], len(self.text)]


def cut_row(word, tokens, length, sentence_ends, special, sizes):
    """A row cut at every s-th token, or at the last end of a sentence or document shortly before it."""
    ends = np.flatnonzero(sentence_ends[tokens] | (tokens == special.eos)) + 1
    size = MIN_SUBSEQUENCE_LENGTH + random.uniform_int(word, max(sizes.row - MIN_SUBSEQUENCE_LENGTH - 1, 1))
    cuts = []
    for number in range(1, sizes.subsequences):
        nominal = int(tokens[0] == special.cls) + size * number
        near = ends[(ends <= nominal) & (ends > nominal - size // 2)]
        cut = int(near[-1]) if len(near) else nominal
        if nominal >= sizes.row or cut + MIN_SUBSEQUENCE_LENGTH > min(length, sizes.row - number):
            break
        cuts.append(cut)
    text, origin, starts = [], [], []
    for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
        starts.append(len(text))
        if start and tokens[start] != special.cls:
            text.append(special.cls)
            origin.append(sizes.row)
        text += tokens[start:stop].tolist()
        origin += range(start, stop)
    return Example(np.array(text[: sizes.row], np.int32), starts, np.array(origin[: sizes.row], np.int32))


# ---------------------------------------------------------------------------- blank infilling


def truncate(bits, example, single, config, sizes):
    """The example without its last tokens, where its spans would not fit T."""
    lengths = _lengths_until(_sample_lengths(bits, sizes), config.mask_ratio, example, single, sizes)
    excess = max(len(example.text) + 2 * len(lengths) - sizes.columns, 0)
    return example._replace(text=example.text[: len(example.text) - excess])


def blank_infilling(bits, steps, example, single, config, special, sizes):
    """Short spans with Poisson lengths; `steps` are the exponentials [2 S] of which gaps are made."""
    drawn = _sample_lengths(bits, sizes)
    segments = _segments(example, special, max_infilling_segments(sizes.row, config.mask_ratio))
    if len(example.starts) > 1:
        members = _fill_each_segment(drawn, segments, single, config, sizes)
    else:
        lengths = _lengths_until(drawn, config.mask_ratio, example, single, sizes)
        order = np.argsort(bits[1][: len(lengths)], kind="stable")
        members = _fill_shortest_first([lengths[i] for i in order], segments, config)
    spans = []
    for (start, length), numbered_lengths in zip(segments, members, strict=True):
        spans += _place(start, length, numbered_lengths, steps, sizes)
    return _part_b_order(bits[4], spans, config)


def _sample_lengths(bits, sizes):
    return (1 + np.searchsorted(sizes.length_thresholds, bits[0], side="right")).tolist()


def _lengths_until(drawn, ratio, example, single, sizes):
    """The lengths drawn until `ratio` of the row is masked, or one."""
    lengths, masked = [], 0
    for length in drawn:
        is_done = lengths if single else masked >= int(ratio * len(example.text))
        if is_done or masked + length + len(lengths) + 1 > sizes.targets:
            break
        lengths.append(length)
        masked += length
    return lengths


def _segments(example, special, max_segments):
    """(start, usable length) of the documents of a row, longest first."""
    text, segments, start = example.text, [], 0
    last_columns = {*np.flatnonzero(text == special.eos).tolist(), *(stop - 1 for stop in example.stops())}
    for end in sorted(last_columns - {-1}):
        start += int(start < len(text) and text[start] == special.cls)
        if end > start:
            segments.append((start, end - start))
        start = end + 1
    return sorted(segments, key=lambda segment: -segment[1])[:max_segments]


def _fill_shortest_first(lengths, segments, config):
    """(number, length) of the spans of each segment.

    The shortest, the last, takes spans first. Each takes up to `mask_ratio` of its tokens, the longest takes the rest.
    """
    members = [[] for _ in segments]
    segment, taken = len(segments) - 1, 0
    for number, length in enumerate(lengths if segments else []):
        while segment > 0 and taken + length > int(config.mask_ratio * segments[segment][1]):
            segment, taken = segment - 1, 0
        members[segment].append((number, length))
        taken += length
    return members


def _fill_each_segment(drawn, segments, single, config, sizes):
    """(number, length) of the spans of each segment, if every segment takes spans until its limit is reached."""
    members = [[] for _ in segments]
    limits = [int(config.mask_ratio * min(length + 2, sizes.row)) for _, length in segments]
    segment = taken = targets = 0
    for number, length in enumerate(drawn):
        if segment < len(segments) and (taken >= limits[segment] or (single and taken)):
            segment, taken = segment + 1, 0
        targets += length + 1
        if segment == len(segments) or not limits[segment] or targets > sizes.targets:
            break
        members[segment].append((number, length))
        taken += length
    return members


def _place(segment_start, segment_length, members, steps, sizes):
    """(number, start, length) of the spans of a segment that fit it, with sorted random gaps between them."""
    numbers, lengths, previous, occupied = [], [], [], 0  # occupied: by earlier spans, and a token after each
    for number, length in members:
        if occupied + length > segment_length:
            break
        numbers.append(number)
        lengths.append(length)
        previous.append(occupied)
        occupied += length + 1
    if not numbers:
        return []
    choices = segment_length - sum(lengths) - len(lengths) + 2
    values = np.zeros(sizes.spans, np.float32)
    values[numbers] = steps[0, numbers]
    partial_sum = _running_sum(values)[numbers]
    values[numbers[0]] += steps[1, numbers[0]]
    gaps = np.floor(partial_sum / _running_sum(values)[-1] * np.float32(choices))
    gaps = np.minimum(gaps.astype(int), choices - 1).tolist()
    starts = [segment_start + before + gap for before, gap in zip(previous, gaps, strict=True)]
    return list(zip(numbers, starts, lengths, strict=True))


def _running_sum(values):
    """Running sums of float32, added in the order of XLA's CPU backend: in windows of 32, then the windows."""
    windows = -(-len(values) // 32)
    first = 32 - (32 * windows - len(values)) // 2  # the padding is split between both ends
    total, sums = np.float32(0), []
    for window in np.split(values, [first + 32 * i for i in range(windows - 1)]):
        sums.append(total + np.cumsum(window, dtype=np.float32))
        total = sums[-1][-1]
    return np.concatenate(sums)


def _part_b_order(bits, spans, config):
    """Spans (number, start, length) uniformly permuted, or left to right, without their numbers."""
    key = (lambda span: (int(bits[span[0]]), span[0])) if config.shuffle_spans else (lambda span: span[1])
    return [(start, length) for _, start, length in sorted(spans, key=key)]


# ---------------------------------------------------------------------------- sentences and documents


def sentences(bits, example, sentence_ends, config, special, sizes):
    """Whole sentences in random order until `sentence_ratio` of every subsequence is masked."""
    row_bits, bits = bits[: sizes.row] >> 8, bits[sizes.row :]
    candidates = _sentence_candidates(example, sentence_ends, special)
    candidates.sort(key=lambda span: -int(row_bits[span[0] + span[1] - 1]))  # by the word of the last token
    masked, targets, spans = {}, 0, []
    for number, (start, length) in enumerate(candidates[: sizes.spans]):
        subsequence = int(np.searchsorted(example.starts, start, side="right")) - 1
        limit = int(config.sentence_ratio * (example.stops()[subsequence] - example.starts[subsequence]))
        if subsequence not in masked or masked[subsequence] < limit:
            targets += length + 1
            if targets <= sizes.targets:
                spans.append((number, start, length))
        masked[subsequence] = masked.get(subsequence, 0) + length
    return _part_b_order(bits, spans, config)


def _sentence_candidates(example, sentence_ends, special):
    text, candidates, start = example.text, [], 0
    last_columns = {stop - 1 for stop in example.stops()}
    is_end = sentence_ends[text].tolist()
    for column, token in enumerate(text.tolist()):
        if column in example.starts and token == special.cls:
            start = column + 1
        is_boundary = is_end[column] or token == special.eos
        if (is_end[column] or (column in last_columns and not is_boundary)) and start <= column:
            candidates.append((start, column + 1 - start))
        if is_boundary:
            start = column + 1
    return candidates


def document(bits, example, config, special):
    """One long span per subsequence, and for each whether it ends with the end token."""
    spans, closed = [], []
    for number, (start, stop) in enumerate(zip(example.starts, example.stops(), strict=True)):
        text = example.text[start:stop]
        max_generated = max(len(text) - 2, 0)
        min_generated = max(int(config.document_min_ratio * len(text)), int(len(example.starts) > 1))
        min_generated = min(min_generated, max_generated)
        generated = min_generated + random.uniform_int(bits[0, number], max_generated - min_generated + 1)
        several_documents = bool((text[:-1] == special.eos).any())
        if several_documents or random.bernoulli(bits[1, number], config.document_suffix_prob):
            begin, is_suffix = len(text) - generated, True
        else:
            has_cls = int(len(text) > 0 and text[0] == special.cls)
            usable = max(len(text) - 1 - has_cls, 0)  # neither [CLS] nor the last token
            generated = min(generated, usable)
            begin, is_suffix = has_cls + random.uniform_int(bits[2, number], usable - generated + 1), False
        if generated:
            spans.append((start + begin, generated))
            closed.append(not is_suffix)
    return spans, closed
