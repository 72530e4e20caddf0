"""Prompts: what is written around an example, and what may fill the blank (paper, section 2.3; PET, Schick and Schütze
2021; the original's tasks/superglue/pvp.py).

A pattern is a function of an example's fields that returns prompt parts: strings, `Truncatable` and `TruncateLast`
(strings that may be shortened), MASK for the blank, SOFT_PROMPT where soft prompts may go, SEGMENT_BREAK between the
two texts. A verbalizer maps labels to words.
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glm_jax.tasks.encoding import Answer, Encoded, encode_example
from glm_jax.tasks.errors import TaskError
from glm_jax.tokenizers.base import Tokenizer

Fields = Mapping[str, Any]


class Mark(enum.Enum):
    """A part of a pattern that is no text."""

    MASK = "the blank"
    SOFT_PROMPT = "soft prompt tokens, where there are any"
    SEGMENT_BREAK = "ends the first text: of two texts, the longer is shortened"


MASK, SOFT_PROMPT, SEGMENT_BREAK = Mark.MASK, Mark.SOFT_PROMPT, Mark.SEGMENT_BREAK


class Truncatable(str):
    """Text that loses its end where an example is too long."""

    __slots__ = ()


class TruncateLast(str):
    """Text that is shortened only when no `Truncatable` has anything left: a question outlives its passage."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class Template:
    """How an example becomes a text with one blank, and the texts that may fill it.

    Attributes:
      pattern: fields -> parts with one MASK; with `per_candidate`, (fields, number of the candidate) -> parts.
      verbalizer: label -> text, the same for all examples. Or
      candidates: fields -> texts; labels are then their numbers, or
      target: fields -> the right one's text.
      end_token: whether the end token belongs to a candidate of several tokens.
      soft_prompts: False where the original leaves SLOT empty.
    """

    pattern: Callable[..., Sequence["str | Mark"]]
    verbalizer: Mapping[str, str] | None = None
    candidates: Callable[[Fields], Sequence[str]] | None = None
    target: Callable[[Fields], str] | None = None
    per_candidate: bool = False
    end_token: bool = True
    soft_prompts: bool = True

    def __post_init__(self):
        if (self.verbalizer is None) == (self.candidates is None):
            raise TaskError("a prompt has either a verbalizer or candidates")
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
class ClozeContext:
    """Part A of a prompt: ids, where the blank stands, where soft prompts stand."""

    ids: tuple[int, ...]
    column: int
    prompt_columns: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Cloze:
    """An encoded example: one context for all candidates, or one each.

    `single_token`: every candidate is one id, and one prediction behind the start token scores them all.
    """

    start: int
    contexts: tuple[ClozeContext, ...]
    candidates: tuple[tuple[int, ...], ...]
    single_token: bool
    known: int = 0  # ids at the front of every candidate that are given, and not scored

    def rows(self) -> list[Encoded]:
        """A row a candidate, as the original has it; a single row for single tokens."""
        if self.single_token:
            return [_row(self.start, context, [Answer(context.column, None)]) for context in self.contexts]
        contexts = self.contexts if len(self.contexts) > 1 else self.contexts * len(self.candidates)
        pairs = zip(contexts, self.candidates, strict=True)
        return [_row(self.start, context, [Answer(context.column, ids, self.known)]) for context, ids in pairs]

    def segments(self, length: int) -> tuple[list[Encoded], list[int]]:
        """Candidates in pieces of `length` tokens, the earlier ones written into the context (--segment-length).

        Returns the rows, and for each the number of its candidate, whose score is the sum over its rows.
        """
        rows, owners = [], []
        contexts = self.contexts if len(self.contexts) > 1 else self.contexts * len(self.candidates)
        for number, (context, ids) in enumerate(zip(contexts, self.candidates, strict=True)):
            for at in range(0, len(ids), length):
                column, known = context.column, ids[:at]
                longer = (*context.ids[:column], *known, *context.ids[column:])
                moved = tuple(c + len(known) * (c > column) for c in context.prompt_columns)
                piece = ClozeContext(longer, column + len(known), moved)
                rows.append(_row(self.start, piece, [Answer(piece.column, ids[at : at + length])]))
                owners.append(number)
        return rows, owners


def _row(start, context, answers):
    return encode_example(start, context.ids, answers, prompt_columns=context.prompt_columns)


@dataclasses.dataclass(frozen=True)
class PromptEncoder:
    """Examples to ids.

    Attributes:
      max_length: of Part A and the longest candidate together.
      prompt_tokens: soft prompt tokens, spread over the slots of a pattern: P of them over k slots, each in turn takes
        ⌈P / k⌉ until none is left.
      prefix_tokens: further soft prompt tokens, in front of the text.
      as_original: every candidate is truncated on its own, so that long candidates see less of the passage, and
        `TruncateLast` is shortened like `Truncatable`, so that the question goes first. By default all candidates share
        one Part A, and the question stays.
      multi_token: True scores every candidate by all its tokens and the end token; False demands verbalizers of one
        token; None takes one token where all verbalizers have one.
    """

    tokenizer: Tokenizer
    max_length: int
    prompt_tokens: int = 0
    prefix_tokens: int = 0
    as_original: bool = False
    multi_token: bool | None = None

    def encode(self, prompt: Template, fields: Fields) -> Cloze:
        """The contexts and candidates of an example.

        Raises TaskError for a pattern without exactly one blank, for an example that stays too long when all that may
        be shortened is gone, and for verbalizers that one token cannot tell apart.
        """
        special = self.tokenizer.special
        candidates = [tuple(self.tokenizer.encode_continuation(text)) for text in prompt.texts(fields)]
        single = prompt.verbalizer is not None and not self.multi_token and not prompt.per_candidate
        if single:
            single = self._check_single_token(prompt, candidates)
        if not single and prompt.end_token:
            candidates = [(*ids, special.end) for ids in candidates]
        lengths = [1] if single else [len(ids) for ids in candidates]
        if not self.as_original:
            lengths = [max(lengths)] * len(lengths)
        if prompt.per_candidate:
            every = [prompt.pattern(fields, number) for number in range(len(candidates))]
        else:
            every = [prompt.pattern(fields)] * (len(candidates) if self.as_original and not single else 1)
        contexts = [self._context(prompt, parts, length) for parts, length in zip(every, lengths, strict=False)]
        if all(context == contexts[0] for context in contexts):
            contexts = contexts[:1]
        return Cloze(special.start, tuple(contexts), tuple(candidates), single)

    def _check_single_token(self, prompt, candidates):
        for (label, text), ids in zip(prompt.verbalizer.items(), candidates, strict=True):
            if len(ids) != 1:
                if self.multi_token is None:
                    return False
                raise TaskError(
                    f"label {label}: the verbalizer {text!r} has {len(ids)} tokens where one is asked; choose another "
                    "word, or score all its tokens with multi_token=True"
                )
        if len(set(candidates)) < len(candidates):
            shared = next(ids for ids in candidates if candidates.count(ids) > 1)
            labels = [label for label, ids in zip(prompt.verbalizer, candidates, strict=True) if ids == shared]
            raise TaskError(
                f"labels {' and '.join(labels)}: their verbalizers are the same token for this tokenizer; choose others"
            )
        return True

    def _context(self, prompt, parts, answer_length):
        blanks = list(parts).count(MASK)
        if blanks != 1:
            raise TaskError(f"a pattern has one blank, but this one has {blanks}: {parts}")
        pieces = self._pieces(prompt, parts)
        special = self.tokenizer.special
        total = sum(len(piece.ids) for piece in pieces) + 2 + answer_length
        _shorten(pieces, total - self.max_length, self.as_original, self.max_length)
        ids, columns, column = [special.cls], [], None
        for piece in pieces:
            if piece.part is MASK:
                column = len(ids)
            elif piece.part is SOFT_PROMPT:
                columns += range(len(ids), len(ids) + len(piece.ids))
            ids += piece.ids
        return ClozeContext((*ids, special.eos), column, tuple(columns))

    def _pieces(self, prompt, parts):
        left = self.prompt_tokens if prompt.soft_prompts else 0
        each = -(-left // max(1, list(parts).count(SOFT_PROMPT)))
        pieces, second = [], False
        if self.prefix_tokens and prompt.soft_prompts:
            pieces.append(_Piece(SOFT_PROMPT, [0] * self.prefix_tokens, second))
        texts = 0
        for part in parts:
            if part is SEGMENT_BREAK:
                second = True
            elif part is MASK:
                pieces.append(_Piece(part, [self.tokenizer.special.mask], second))
                texts += 1
            elif part is SOFT_PROMPT:
                pieces.append(_Piece(part, [0] * min(each, left), second))
                left -= min(each, left)
            elif part:
                encode = self.tokenizer.encode_continuation if texts else self.tokenizer.encode
                pieces.append(_Piece(part, list(encode(str(part))), second))
                texts += 1
        return pieces


@dataclasses.dataclass
class _Piece:
    part: "str | Mark"
    ids: list[int]
    second: bool  # behind the BREAK


def _shorten(pieces, excess, as_original, max_length):
    """Takes the last token of the last shortenable part, of the longer text; one at a time."""
    removed = 0
    for kinds in [(Truncatable, TruncateLast)] if as_original else [(Truncatable,), (TruncateLast,)]:
        while removed < excess:
            open_ = [piece for piece in pieces if isinstance(piece.part, kinds) and piece.ids]
            if not open_:
                break
            first = sum(len(piece.ids) for piece in open_ if not piece.second)
            rest = sum(len(piece.ids) for piece in open_ if piece.second)
            [piece for piece in open_ if piece.second != (first > rest)][-1].ids.pop()
            removed += 1
    if removed < max(0, excess):
        raise TaskError(
            f"an example is {excess - removed} tokens longer than max_length={max_length} when all that may be "
            "shortened is gone: raise max_length, or mark more of the pattern with P"
        )
