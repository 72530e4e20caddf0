"""Cuts documents into rows of L tokens. Rows are random access: any row can be made without the others."""

import bisect
import hashlib
import random
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from glm_jax.data.errors import DataError
from glm_jax.data.token_store import Documents

SENTENCE_MARKS = ".?!;:\n"  # of `SampledRows`: the original's data set knows no Chinese marks, its objectives do


@runtime_checkable
class PackedRows(Protocol):
    """A sequence of rows: `rows[i]` is {"tokens": int32 [L], "length": int32}, padded with `pad` after `length`."""

    sequence_length: int
    pad: int

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> dict[str, np.ndarray]: ...

    def fingerprint(self) -> str: ...


class ContiguousRows:
    """Every token exactly once: documents `[CLS] tokens [EOS]`, one after the other, in rows that are exactly full.

    A row begins with CLS even in the middle of a document. Only the last row may be shorter than L.

    Args:
      documents: token ids by number, with `lengths` (int64 `[documents]`, each at least 1) and `fingerprint()`.
      sequence_length: L, at least 2.
      cls, eos, pad: ids.
    """

    def __init__(self, documents: Documents, *, sequence_length: int, cls: int, eos: int, pad: int):
        if sequence_length < 2:
            raise DataError(f"sequence_length must be at least 2, not {sequence_length}: CLS takes the first place")
        self.sequence_length, self.pad = sequence_length, pad
        self._documents, self._cls, self._eos = documents, cls, eos
        # A row's first place is CLS; the other L - 1 are slots, numbered through all rows. A document takes a slot for
        # its CLS, unless it starts with its row, and one for each token and for EOS.
        self._starts, self._slots = _start_slots(documents.lengths, sequence_length - 1)

    def __len__(self) -> int:
        return -(-self._slots // (self.sequence_length - 1))

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        row = _checked(row, len(self))
        per_row = self.sequence_length - 1
        first, last = row * per_row, min((row + 1) * per_row, self._slots)
        tokens = np.full(self.sequence_length, self.pad, np.int32)
        tokens[0], slots = self._cls, tokens[1:]
        document = int(np.searchsorted(self._starts, first, side="right")) - 1
        while document < len(self._starts) and (start := int(self._starts[document])) < last:
            text = start + (start % per_row != 0)
            if text > start and start >= first:
                slots[start - first] = self._cls
            end = text + int(self._documents.lengths[document])
            low, high = max(text, first), min(end, last)
            if low < high:
                slots[low - first : high - first] = self._documents[document][low - text : high - text]
            if first <= end < last:
                slots[end - first] = self._eos
            document += 1
        return {"tokens": tokens, "length": np.int32(last - first + 1)}

    def fingerprint(self) -> str:
        """A hash that differs for other rows."""
        return _fingerprint("contiguous", self._documents, self.sequence_length, self._cls, self._eos, self.pad)


def _start_slots(lengths: Int[np.ndarray, "n"], per_row: int) -> tuple[Int[np.ndarray, "n"], int]:
    """First slot of each document, and the number of slots.

    Each document takes length + 2 slots, or one less where it starts a row. Such a start moves all later documents, so
    the sum is taken in blocks that end there: about one document in L, hence fast for hundreds of millions.
    """
    starts = np.empty(len(lengths), np.int64)
    document, slot, block = 0, 0, 8 * per_row
    while document < len(lengths):
        ends = slot + np.cumsum(lengths[document : document + block] + 2) - (slot % per_row == 0)
        aligned = np.flatnonzero(ends % per_row == 0)
        count = int(aligned[0]) + 1 if len(aligned) else len(ends)
        starts[document] = slot
        starts[document + 1 : document + count] = ends[: count - 1]
        document, slot = document + count, int(ends[count - 1])
    return starts, slot


class SampledRows:
    """The original's pretraining rows (BlockDataset): windows drawn at random, with replacement, by their number.

    Row i draws everything from `random.Random(i)`: a document with probability proportional to its tokens; of a long
    one a window that starts after a sentence end, of a short one all of it, followed by further documents until the
    row is full. The end is cut back to a sentence end. There are 1,000 rows for each document.

    Args:
      documents: as for `ContiguousRows`.
      sequence_length: S, at least 2.
      sentence_ends: bool `[V]`: tokens whose string holds one of `SENTENCE_MARKS`.
      cls, eos, pad: ids.
      sample_one_document: never join documents in a row.
      non_sentence_start: probability that a window may start inside a sentence.
    """

    def __init__(
        self,
        documents: Documents,
        *,
        sequence_length: int,
        sentence_ends: Bool[np.ndarray, "V"],
        cls: int,
        eos: int,
        pad: int,
        sample_one_document: bool = False,
        non_sentence_start: float = 0.0,
    ):
        if sequence_length < 2:
            raise DataError(f"sequence_length must be at least 2, not {sequence_length}: CLS takes the first place")
        self.sequence_length, self.pad = sequence_length, pad
        self._documents, self._ends, self._cls, self._eos = documents, sentence_ends, cls, eos
        self._one_document, self._non_sentence_start = sample_one_document, non_sentence_start
        self._cumulative = np.cumsum(documents.lengths, dtype=np.int64)

    def __len__(self) -> int:
        return 1000 * len(self._documents.lengths)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        row = _checked(row, len(self))
        seeds = random.Random(row)
        rng = np.random.RandomState([seeds.randint(0, 2**32 - 1) for _ in range(16)])
        tokens = self._sample(rng)
        padded = np.full(self.sequence_length, self.pad, np.int32)
        padded[: len(tokens)] = tokens
        return {"tokens": padded, "length": np.int32(len(tokens))}

    def fingerprint(self) -> str:
        """A hash that differs for other rows."""
        options = (self.sequence_length, self._one_document, self._non_sentence_start, self._cls, self._eos, self.pad)
        return _fingerprint("sampled", self._documents, *options, self._ends.tobytes())

    def _sample(self, rng: np.random.RandomState) -> np.ndarray:
        size = self.sequence_length
        text = self._draw_document(rng)
        surplus = len(text) + 1 - size
        if surplus > 0:
            start = self._window_start(rng, text, surplus)
            tokens = self._cut_back(self._with_cls(text[start:]), size)
            return tokens if tokens.tolist() != [self._cls, self._eos] else tokens[:0]
        tokens = self._with_cls(text)
        while len(tokens) < size and not self._one_document:
            whole = self._with_cls(self._draw_document(rng))
            tail = self._cut_back(whole, size - len(tokens))
            tokens = np.concatenate([tokens, tail])
            if len(tail) < len(whole):
                break
        return tokens

    def _draw_document(self, rng) -> np.ndarray:
        token = rng.randint(int(self._cumulative[-1]))
        document = bisect.bisect_right(self._cumulative, token)
        return np.append(self._documents[document].astype(np.int32), np.int32(self._eos))

    def _window_start(self, rng, text: np.ndarray, surplus: int) -> int:
        start = rng.randint(surplus)
        if rng.random_sample() > self._non_sentence_start:
            step = -1 if rng.random_sample() < 0.5 else 1
            for _ in range(self.sequence_length // 2):
                # Going forwards from 0, the original looks at the last token (EOS, no sentence end) and moves on.
                if self._ends[text[start - 1]] or start == (0 if step < 0 else len(text)):
                    break
                start += step
        return start

    def _with_cls(self, text: np.ndarray) -> np.ndarray:
        return np.concatenate([[np.int32(self._cls)], text])

    def _cut_back(self, tokens: np.ndarray, size: int) -> np.ndarray:
        """At most `size` tokens, up to the last sentence end, unless less than half of them would be left."""
        if len(tokens) <= size:
            return tokens
        ends = np.flatnonzero(self._ends[tokens[1:size]])
        kept = int(ends[-1]) + 2 if len(ends) else 1
        return tokens[: kept if kept >= size // 2 else size]


class ConcatenatedRows:
    """Several sets of rows as one, one after the other (validation sets of a mixture)."""

    def __init__(self, parts: Sequence[PackedRows]):
        if len({(part.sequence_length, part.pad) for part in parts}) != 1:
            raise DataError("rows of different lengths or pad ids, or none at all, cannot be in one batch")
        self.sequence_length, self.pad = parts[0].sequence_length, parts[0].pad
        self.parts = list(parts)
        self._first = np.concatenate([[0], np.cumsum([len(part) for part in parts])])

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        row = _checked(row, len(self))
        part = int(np.searchsorted(self._first, row, side="right")) - 1
        return self.parts[part][row - int(self._first[part])]

    def fingerprint(self) -> str:
        """A hash that differs for other rows."""
        return hashlib.sha256("".join(part.fingerprint() for part in self.parts).encode()).hexdigest()


class Mixture(ConcatenatedRows):
    """Training rows of several corpora, of which each gives a fixed share; a pass over one starts as it ends.

    Args:
      parts: rows of one length and pad id.
      weights: positive, one a part; the share of a part is its weight over their sum.
    """

    def __init__(self, parts: Sequence[PackedRows], weights: Sequence[float]):
        if len(parts) != len(weights) or not parts or not all(0 < weight < float("inf") for weight in weights):
            raise DataError(f"a mixture of {len(parts)} parts needs a positive weight for each, not {list(weights)}")
        super().__init__(parts)
        self.weights = [float(weight) for weight in weights]

    def fingerprint(self) -> str:
        """A hash that differs for another mixture."""
        parts = [part.fingerprint() for part in self.parts]
        return hashlib.sha256(repr((parts, self.weights)).encode()).hexdigest()


def _checked(row: int, count: int) -> int:
    if not 0 <= row < count:
        raise IndexError(f"row {row} of {count}")
    return int(row)


def _fingerprint(kind: str, documents: Documents, *options) -> str:
    return hashlib.sha256(repr((kind, documents.fingerprint(), *options)).encode()).hexdigest()
