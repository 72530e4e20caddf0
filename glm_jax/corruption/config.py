"""What is masked and how it is laid out, and the static sizes that follow from it."""

import dataclasses
import types
import typing
from numbers import Integral, Real

import numpy as np

from glm_jax.corruption.baselines import BASELINES, row_length
from glm_jax.corruption.capacity import (
    Capacity,
    infilling_capacity,
    length_weights,
    max_document_context,
    spans_for_truncation_rate,
)
from glm_jax.files import nearest

OBJECTIVES = ("blank_infilling", "sentence", "document")
MIN_SUBSEQUENCE_LENGTH = 32  # tokens, as in the original
_MAX_SLOTS = 16


@dataclasses.dataclass(frozen=True)
class CorruptionConfig:
    """What is masked and how it is laid out. The defaults are the paper's blank infilling.

    The original chooses one objective per batch; here every example draws its own, with the same probabilities, or
    (`pack_objectives`) examples take turns.
    """

    # The mixture (probabilities, normalised).
    blank_infilling: float = 1.0
    sentence: float = 0.0
    document: float = 0.0
    # Each row of the model packs one example per objective, or as many as the mixture says, into slots of fixed size,
    # so that rows of short spans are not padded to the size of documents.
    pack_objectives: bool = False
    # The distributions of the spans.
    mask_ratio: float = 0.15
    average_span_length: float = 3.0  # Poisson λ; length 0 is excluded, so the mean is λ / (1 - e^-λ)
    max_span_length: int = 39
    sentence_ratio: float = 0.15
    document_min_ratio: float = 0.5  # smallest generated share of a row
    document_suffix_prob: float = 0.5  # suffix generation, else one long span anywhere
    single_span_prob: float = 0.0  # exactly one span, with the length distribution of blank infilling
    short_sequence_prob: float = 0.0  # cut the row into subsequences, each an example of its own
    # The layout.
    task_masks: bool = False  # [sMASK] for sentences and [gMASK] for documents, instead of [MASK] for all
    shuffle_spans: bool = True
    block_positions: bool = True  # False: the second position is 1 throughout Part B
    # Span j > 0 gets the ids offset + 2(j-1) in Part A and offset + 2(j-1) + 1 in Part B.
    sentinel_offset: int | None = None
    random_position: bool = False  # shift the first positions by a random offset that fits `max_position`
    max_position: int | None = None  # positions available; needed by random_position and sentinels
    block_mask_prob: float = 0.0  # replace Part B inputs by [dBLOCK]
    context_mask_ratio: float = 0.0  # replace context next to spans by [dBLOCK]
    context_mask_range: int = 3
    masked_lm: bool = False  # the same spans as a masked language model: no Part B
    baseline: str | None = None  # another language model on the same rows: a name in `baselines.BASELINES`
    # Static sizes. None: the smallest that blank infilling overflows with probability overflow_prob at most.
    max_spans: int | None = None
    max_targets: int | None = None
    overflow_prob: float = 1e-4
    # Rows with too many spans for T are truncated, losing at most this share of all tokens; 0, or a `max_spans` of your
    # own, disables truncation.
    truncation_rate: float = 2e-3

    def __post_init__(self):
        self._check_types()
        mixture = (self.blank_infilling, self.sentence, self.document)
        if min(mixture) < 0 or sum(mixture) <= 0:
            raise ValueError(f"objective weights {mixture} must be non-negative and not all zero")
        for name in ("mask_ratio", "sentence_ratio", "document_min_ratio"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1")
        for name in (
            "truncation_rate",
            "overflow_prob",
            "document_suffix_prob",
            "single_span_prob",
            "short_sequence_prob",
            "block_mask_prob",
            "context_mask_ratio",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in 0 … 1")
        for name in ("max_span_length", "max_position", "max_spans", "max_targets"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("sentinel_offset", "context_mask_range"):
            if getattr(self, name) is not None and getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if self.average_span_length <= 0:
            raise ValueError(f"average_span_length={self.average_span_length} must be positive")
        with np.errstate(all="ignore"):
            weights = length_weights(self.average_span_length, self.max_span_length)
        if not np.isfinite(weights).all():
            raise ValueError(
                f"average_span_length={self.average_span_length} is too large for "
                f"max_span_length={self.max_span_length}: no length has a probability above 0"
            )
        if self.masked_lm and self.pack_objectives:
            raise ValueError("masked_lm is one objective, and pack_objectives packs several: set pack_objectives=False")
        if self.masked_lm and (self.sentence or self.document):
            raise ValueError("masked_lm is a variant of blank infilling: set sentence=0 and document=0")
        if self.baseline is not None:
            self._check_baseline()
        if (self.random_position or self.sentinel_offset is not None) and self.max_position is None:
            raise ValueError(
                "random_position and sentinel_offset need max_position, the size of the position table - 1"
            )
        if self.random_position and self.sentinel_offset is not None:
            raise ValueError(
                "sentinels have the last position, which random_position would shift: switch one of them off"
            )
        if self.short_sequence_prob and self.sentinel_offset is not None:
            raise ValueError(
                "sentinels number the spans of one text: set short_sequence_prob=0 or sentinel_offset=None"
            )
        if self.document and not self.block_positions:
            raise ValueError("the document objective needs block_positions: a long span cannot be read without them")
        if self.pack_objectives and not self._shares():
            raise ValueError(
                f"pack_objectives: a row of at most {_MAX_SLOTS} examples cannot hold the mixture {mixture}: take "
                "weights in the ratio of small whole numbers, or pack_objectives=False"
            )

    def _check_baseline(self):
        if self.baseline not in BASELINES:
            raise ValueError(f"unknown baseline {self.baseline!r}; nearest: {nearest(self.baseline, BASELINES)}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("baseline", "max_position") and value != field.default:
                raise ValueError(
                    f"baseline {self.baseline!r} draws no spans: leave out {field.name}={value!r}, or the baseline"
                )

    def _check_types(self):
        kinds = {
            str: (str, "text"),
            bool: ((bool, np.bool_), "True or False"),
            int: (Integral, "an integer"),
            float: (Real, "a number"),
        }
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kind = field.type
            if isinstance(kind, types.UnionType):  # of a type and None
                if value is None:
                    continue
                kind = typing.get_args(kind)[0]
            accepted, text = kinds[kind]
            is_bool = isinstance(value, (bool, np.bool_))
            if not isinstance(value, accepted) or (is_bool and kind is not bool) or value != value:
                raise ValueError(f"{field.name}={value!r} must be {text}")

    @property
    def mixture(self) -> tuple[float, float, float]:
        """Normalised probabilities of `OBJECTIVES`."""
        total = self.blank_infilling + self.sentence + self.document
        return self.blank_infilling / total, self.sentence / total, self.document / total

    def _shares(self) -> tuple[int, ...]:
        """Examples of each objective in the smallest group that holds the mixture exactly; () where none is small."""
        for size in range(1, _MAX_SLOTS + 1):
            shares = [size * share for share in self.mixture]
            if all(abs(share - round(share)) < 1e-6 for share in shares):
                return tuple(map(round, shares))
        return ()

    def slots(self) -> tuple["CorruptionConfig", ...]:
        """The config of every slot of a row, in order; consecutive examples of a run take consecutive slots."""
        if not self.pack_objectives:
            return (self,)
        single = [
            dataclasses.replace(
                self, pack_objectives=False, **{other: float(other == objective) for other in OBJECTIVES}
            )
            for objective in OBJECTIVES
        ]
        return tuple(config for config, share in zip(single, self._shares(), strict=True) for _ in range(share))

    def capacity(self, length: int) -> Capacity:
        """Static sizes for rows of `length` tokens, and the probability that blank infilling overflows them.

        A span that does not fit S or K stays unmasked. Sentences and documents may be as long as the row: K = L.
        """
        if not 4 <= length < 2**16:
            raise ValueError(f"sequence length {length} must be at least 4 and below 65536")
        if self.baseline is not None:
            return Capacity(0, -(-row_length(self.baseline, length) // 8) * 8, 0.0)
        infilling, sentence, document = self.mixture
        subsequences = self.max_subsequences(length)
        needs = []
        if infilling or self.single_span_prob:
            needs = [infilling_capacity(length, *self._poisson, self.overflow_prob)]
            if subsequences > 1:  # one row in L is cut into the most subsequences
                rate = min(self.overflow_prob * length / 32, 1.0)
                needs.append(infilling_capacity(length // subsequences, *self._poisson, rate, subsequences))
        if sentence:  # sentences are longer than Poisson spans on average: the same ratio needs fewer of them
            spans = max(needs[0].max_spans if needs else 0, min(32, length // 4))
            needs.append(Capacity(max(spans, subsequences), length, 0.0))
        if document:
            if (self.max_spans or subsequences) < subsequences:
                raise ValueError(f"max_spans={self.max_spans} must be at least {subsequences}: a span per subsequence")
            if (self.max_targets or length) < length - 1:
                raise ValueError(
                    f"max_targets={self.max_targets} must be at least {length - 1}: a document of {length} tokens "
                    "may have a span of almost its length"
                )
            needs.append(Capacity(subsequences, length, 0.0))
        max_spans = self.max_spans or max(need.max_spans for need in needs)
        max_targets = self.max_targets or max(need.max_targets for need in needs)
        # Rounding up to whole tiles of 8 rows costs nothing and often saves a padded copy.
        max_spans, max_targets = -(-max_spans // 4) * 4, min(-(-max_targets // 8) * 8, -(-length // 8) * 8)
        return Capacity(max_spans, max_targets, needs[0].overflow_prob)

    @property
    def _poisson(self) -> tuple[float, float, int]:
        return self.mask_ratio, self.average_span_length, self.max_span_length

    def max_subsequences(self, length: int) -> int:
        """How many subsequences a row of `length` tokens can be cut into."""
        return max((length - 2) // MIN_SUBSEQUENCE_LENGTH, 1) if self.short_sequence_prob else 1

    def row_spans(self, length: int) -> int:
        """Spans that T has room for beside `length` raw tokens. Only rows of blank infilling can have more."""
        max_spans = self.capacity(length).max_spans
        if self.baseline is not None:
            return 0
        if self.max_spans or self.sentence or self.short_sequence_prob or self.masked_lm:
            return max_spans
        room = spans_for_truncation_rate(length, *self._poisson, self.truncation_rate) if self.blank_infilling else 1
        return min(-(-room // 4) * 4, max_spans)

    def sequence_length(self, length: int) -> int:
        """T for rows of `length` raw tokens: every span adds its mask and its start token. Sums over slots."""
        if self.baseline is not None:
            return row_length(self.baseline, length)
        if self.pack_objectives:
            return sum(slot.sequence_length(length) for slot in self.slots())
        return length if self.masked_lm else length + 2 * self.row_spans(length)

    def longest_prefix(self, length: int) -> int:
        """The most tokens that Part A of one example can have, from rows of `length`."""
        if self.blank_infilling or self.sentence or self.single_span_prob or self.short_sequence_prob:
            return length  # a span is at least as long as its mask
        return max_document_context(length, self.document_min_ratio)

    def max_block_position(self, length: int) -> int:
        """The largest second position of any example: a row's [CLS] is never masked."""
        if self.baseline is not None:
            return 0
        longest = length - 1 if self.sentence or self.document else min(self.max_span_length, length - 1)
        return longest + 1 if self.block_positions else 1
