"""Templates: the text around an example, with one blank, and what may fill it (paper, section 2.3; PET, Schick and
Schütze 2021; the original's tasks/superglue/pvp.py).

A pattern is a function of an example's fields that returns prompt parts: strings, `Truncatable` and `TruncateLast`
(strings that may be shortened), MASK for the blank, SOFT_PROMPT where soft prompts may go, SEGMENT_BREAK between the
two texts. A verbalizer maps labels to words.
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glm_jax.tasks.encoding import Encoded, encode_candidates
from glm_jax.tasks.errors import TaskError
from glm_jax.tokenizers.base import Tokenizer

Fields = Mapping[str, Any]


class Mark(enum.Enum):
    """A part of a pattern that is not text."""

    MASK = "the blank"
    SOFT_PROMPT = "soft prompt tokens, if there are any"
    SEGMENT_BREAK = "ends the first text: of two texts, the longer is shortened"


MASK, SOFT_PROMPT, SEGMENT_BREAK = Mark.MASK, Mark.SOFT_PROMPT, Mark.SEGMENT_BREAK


class Truncatable(str):
    """Text whose end is cut off if an example is too long."""

    __slots__ = ()


class TruncateLast(str):
    """Text that is shortened only when every `Truncatable` is empty, such as the question about a passage."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class Template:
    """How an example becomes a text with one blank, and the texts that may fill it.

    Attributes:
      pattern: fields -> parts with one MASK; with `per_candidate`, (fields, number of the candidate) -> parts.
      verbalizer: label -> text, the same for all examples. Or
      candidates: fields -> texts; labels are then their numbers, or
      target: fields -> the right one's text.
      soft_prompts: False where the original has no soft prompts.
    """

    pattern: Callable[..., Sequence["str | Mark"]]
    verbalizer: Mapping[str, str] | None = None
    candidates: Callable[[Fields], Sequence[str]] | None = None
    target: Callable[[Fields], str] | None = None
    per_candidate: bool = False
    soft_prompts: bool = True

    def __post_init__(self):
        if (self.verbalizer is None) == (self.candidates is None):
            raise TaskError("a template has either a verbalizer or candidates")
        if self.verbalizer is not None:
            texts = list(self.verbalizer.values())
            if twice := {text for text in texts if texts.count(text) > 1}:
                raise TaskError(f"two labels have the verbalizer {sorted(twice)[0]!r}: they could not be told apart")

    def texts(self, fields: Fields) -> list[str]:
        """What may fill the blank of this example."""
        texts = list(self.verbalizer.values() if self.verbalizer is not None else self.candidates(fields))
        if not texts or not all(text.strip() for text in texts):
            raise TaskError(f"an example needs candidates that are not empty, but has {texts!r}")
        return texts

    def label_index(self, label: Any, fields: Fields) -> int:
        """The number of a label among `texts`. Raises TaskError for a label outside the verbalizer."""
        if self.verbalizer is not None:
            names = list(self.verbalizer)
            if label_name(label) not in names:
                raise TaskError(f"label {label!r} is not in the verbalizer, which knows {', '.join(names)}")
            return names.index(label_name(label))
        texts = self.texts(fields)
        if self.target is not None:
            if (target := self.target(fields)) not in texts:
                raise TaskError(f"the target {target!r} is not one of {texts!r}")
            return texts.index(target)
        count = len(texts)
        if type(label) is not int or not 0 <= label < count:
            raise TaskError(f"label {label!r} is not the number of one of {count} candidates (0 to {count - 1})")
        return label


def label_name(label: Any) -> str:
    """A label as verbalizers write it: true and false in lower case, anything else as it prints."""
    return str(label).lower() if isinstance(label, bool) else str(label)


@dataclasses.dataclass(frozen=True)
class TemplateEncoder:
    """Encodes examples with a template.

    Attributes:
      max_length: maximum number of tokens of Part A and the longest candidate together.
      prompt_tokens: number of soft prompt tokens for the SOFT_PROMPT marks of a pattern: of P tokens for k marks, each
        mark in turn takes ⌈P / k⌉ until none is left.
      prefix_tokens: number of further soft prompt tokens, at the beginning.
      as_original: every candidate is truncated on its own, so that long candidates see less of the passage, and
        `TruncateLast` is shortened like `Truncatable`, so that the question goes first. By default all candidates share
        one Part A, and the question stays.
      multi_token: True scores every candidate by all its tokens and the end token; False demands verbalizers of one
        token; None scores one token if all verbalizers have one.
      place_all: the soft prompt tokens of a pattern without marks stand at the beginning, instead of nowhere.
    """

    tokenizer: Tokenizer
    max_length: int
    prompt_tokens: int = 0
    prefix_tokens: int = 0
    as_original: bool = False
    multi_token: bool | None = None
    place_all: bool = False

    def encode(self, template: Template, fields: Fields, row_length: int | None = None) -> list[Encoded]:
        """The rows of an example's candidates: one, unless the candidates have contexts of their own or fit no row.

        Args:
          row_length: see `encode_candidates`.

        Raises:
          TaskError: a pattern without exactly one blank, an example that stays too long when all that may be shortened
            is gone, and verbalizers that one token cannot tell apart.
        """
        special = self.tokenizer.special
        candidates = [tuple(self.tokenizer.encode_continuation(text)) for text in template.texts(fields)]
        single_token = self._is_single_token(template, candidates)
        if not single_token:
            candidates = [(*ids, special.end) for ids in candidates]
        contexts = self._contexts(template, fields, [1] if single_token else [len(ids) for ids in candidates])
        if all(context == contexts[0] for context in contexts):
            ids, blank, prompt_columns = contexts[0]
            return encode_candidates(
                special.start, ids, blank, candidates, single_token=single_token, row_length=row_length,
                prompt_columns=prompt_columns,
            )  # fmt: skip
        return [
            row
            for number, ((ids, blank, prompt_columns), candidate) in enumerate(zip(contexts, candidates, strict=True))
            for row in encode_candidates(
                special.start, ids, blank, [candidate], numbers=[number], row_length=row_length,
                prompt_columns=prompt_columns,
            )
        ]  # fmt: skip

    def _is_single_token(self, template, candidates):
        """Whether one prediction after the start token scores all candidates."""
        if template.verbalizer is None or self.multi_token or template.per_candidate:
            return False
        for (label, text), ids in zip(template.verbalizer.items(), candidates, strict=True):
            if len(ids) != 1:
                if self.multi_token is None:
                    return False
                raise TaskError(
                    f"label {label}: the verbalizer {text!r} has {len(ids)} tokens where one is asked; choose another "
                    "word, or score all its tokens with multi_token=True"
                )
        if len(set(candidates)) < len(candidates):
            shared = next(ids for ids in candidates if candidates.count(ids) > 1)
            labels = [label for label, ids in zip(template.verbalizer, candidates, strict=True) if ids == shared]
            raise TaskError(
                f"labels {' and '.join(labels)}: their verbalizers are the same token for this tokenizer; choose others"
            )
        return True

    def _contexts(self, template, fields, lengths):
        """One context for all candidates, of these lengths, or one each."""
        if not self.as_original:
            lengths = [max(lengths)] * len(lengths)
        if template.per_candidate:
            patterns = [template.pattern(fields, number) for number in range(len(lengths))]
        else:
            patterns = [template.pattern(fields)] * (len(lengths) if self.as_original else 1)
        return [self._context(template, parts, length) for parts, length in zip(patterns, lengths, strict=False)]

    def _context(self, template, parts, answer_length):
        """Ids of Part A, the column of its blank, the columns of its soft prompts."""
        blanks = list(parts).count(MASK)
        if blanks != 1:
            raise TaskError(f"a pattern has one blank, but this one has {blanks}: {parts}")
        encoded = self._encode_parts(template, parts)
        special = self.tokenizer.special
        total = sum(len(part.ids) for part in encoded) + 2 + answer_length
        _shorten(encoded, total - self.max_length, self.as_original, self.max_length)
        ids, prompt_columns, blank = [special.cls], [], None
        for part in encoded:
            if part.kind is MASK:
                blank = len(ids)
            elif part.kind is SOFT_PROMPT:
                prompt_columns += range(len(ids), len(ids) + len(part.ids))
            ids += part.ids
        return [*ids, special.eos], blank, tuple(prompt_columns)

    def _encode_parts(self, template, parts):
        soft = template.soft_prompts or self.place_all
        left, marks = self.prompt_tokens if soft else 0, list(parts).count(SOFT_PROMPT)
        each = -(-left // max(1, marks))
        encoded, second = [], False
        front = (self.prefix_tokens if soft else 0) + (left if self.place_all and not marks else 0)
        if front:
            encoded.append(_EncodedPart(SOFT_PROMPT, [0] * front, second))
        texts = 0
        for part in parts:
            if part is SEGMENT_BREAK:
                second = True
            elif part is MASK:
                encoded.append(_EncodedPart(part, [self.tokenizer.special.mask], second))
                texts += 1
            elif part is SOFT_PROMPT:
                encoded.append(_EncodedPart(part, [0] * min(each, left), second))
                left -= min(each, left)
            elif part:
                encode = self.tokenizer.encode_continuation if texts else self.tokenizer.encode
                encoded.append(_EncodedPart(part, list(encode(str(part))), second))
                texts += 1
        return encoded


@dataclasses.dataclass
class _EncodedPart:
    kind: "str | Mark"
    ids: list[int]
    second: bool  # whether it comes after SEGMENT_BREAK


def _shorten(parts, excess, as_original, max_length):
    """Removes the last token of the last part that may be shortened, of the longer text; one at a time."""
    removed = 0
    for kinds in [(Truncatable, TruncateLast)] if as_original else [(Truncatable,), (TruncateLast,)]:
        while removed < excess:
            shortenable = [part for part in parts if isinstance(part.kind, kinds) and part.ids]
            if not shortenable:
                break
            first = sum(len(part.ids) for part in shortenable if not part.second)
            rest = sum(len(part.ids) for part in shortenable if part.second)
            [part for part in shortenable if part.second != (first > rest)][-1].ids.pop()
            removed += 1
    if removed < max(0, excess):
        raise TaskError(
            f"an example is {excess - removed} tokens longer than max_length={max_length} when all that may be "
            "shortened is gone: raise max_length, or mark more of the pattern with Truncatable"
        )
