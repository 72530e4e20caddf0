"""From text with blanks to what is decoded: Part A, its blanks in the order of filling, the beginning of an answer."""

import dataclasses
import numbers
import random
from collections.abc import Sequence

from glm_jax.model.config import GLMConfig
from glm_jax.tokenizers.base import MASK_WORDS, Tokenizer
from glm_jax.tokenizers.special import SpecialTokens


class PromptError(ValueError):
    """A prompt that cannot be filled."""


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """Ids of Part A, the columns of its `blanks` in the order of filling, ids with which the first answer begins."""

    part_a: tuple[int, ...]
    blanks: tuple[int, ...]
    answer_prefix: tuple[int, ...] = ()


def encode_prompt(tokenizer: Tokenizer, text: str, order: str | Sequence[int] = "left-to-right") -> EncodedPrompt:
    """Part A of a prompt: [CLS] text [EOS]; no [EOS] after a final [gMASK], as in the original.

    `order` of filling is "left-to-right", "right-to-left", or the blanks' numbers in the text, from 0, as in (2, 0, 1).
    Raises PromptError for text that is empty or without a blank, for a mask that the model does not know, for text that
    is not valid Unicode, and for an order that is no permutation of the blanks.
    """
    special = tokenizer.special
    words = known_masks(special)
    _check_text(text, "such as 'In the beginning [MASK] the heaven.'")
    for word in MASK_WORDS:
        if word in text and word not in words:
            raise PromptError(f"this model has no {word}: use {', '.join(words)} in {text[:60]!r}")
    ids = tokenizer.encode_prompt(text)
    if not any(i in blank_ids(special) for i in ids):
        raise PromptError(f"no blank in {text[:60]!r}: mark one with {', '.join(words)}")
    open_end = text.rstrip().endswith("[gMASK]")
    ids = [special.cls, *ids, *([] if open_end else [special.eos])]
    columns = [column for column, token in enumerate(ids) if token in blank_ids(special)]
    return EncodedPrompt(tuple(ids), tuple(columns[i] for i in _permutation(order, len(columns), text)))


def encode_continuation(tokenizer: Tokenizer, text: str, *, unidirectional: bool = False) -> EncodedPrompt:
    """A prompt that continues `text`: with a [gMASK] after it ([MASK] where the model has none).

    `unidirectional` puts the text into Part B as the beginning of the answer: language modelling from left to right,
    which may start from nothing. Raises PromptError as `encode_prompt`.
    """
    special = tokenizer.special
    if not unidirectional:
        _check_text(text, "or generate from nothing with unidirectional=True")
        if has_blank(text):
            raise PromptError(f"{text[:60]!r} has a blank already: fill() fills it, generate() continues plain text")
        return encode_prompt(tokenizer, f"{text.rstrip()} {known_masks(special)[-1]}")
    if text:
        _check_text(text, "or use '' to start from nothing")
    begun = tokenizer.encode(text)
    return EncodedPrompt((special.cls, special.generation_mask), (1,), tuple(begun))


def known_masks(special: SpecialTokens) -> tuple[str, ...]:
    """The mask words of a vocabulary: [MASK] always, [sMASK] and [gMASK] where they have ids of their own."""
    words = [word for word, name in MASK_WORDS.items() if name == "mask" or getattr(special, name) != special.mask]
    return tuple(words)


def has_blank(text: str) -> bool:
    """Whether a text names a mask."""
    return any(word in text for word in MASK_WORDS)


def blank_ids(special: SpecialTokens) -> tuple[int, int, int]:
    """The ids that stand for a blank in Part A."""
    return special.mask, special.sentence_mask, special.generation_mask


def check_room(prompts: Sequence[EncodedPrompt], config: GLMConfig, max_new_tokens: int) -> None:
    """Raises PromptError when positions run out: a prompt too long (says by how much), or answers too long."""
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, numbers.Integral) or max_new_tokens < 1:
        raise PromptError(f"max_new_tokens is {max_new_tokens!r}, but must be a whole number of at least 1")
    limit = config.num_positions
    for prompt in prompts:
        if config.layout != "glm":  # the answer's positions go on where Part A ends
            over = len(prompt.part_a) + len(prompt.answer_prefix) + max_new_tokens + 1 - limit
            if over > 0:
                raise PromptError(
                    f"a prompt of {len(prompt.part_a) + len(prompt.answer_prefix)} tokens and max_new_tokens="
                    f"{max_new_tokens} are {over} more than the model's {limit} positions, which both share"
                )
        over = len(prompt.part_a) - limit
        if over > 0:
            raise PromptError(
                f"prompt of {len(prompt.part_a)} tokens is {over} longer than the model's {limit} positions: shorten it"
            )
        # An answer of n tokens is fed as start, token 1 … token n, at block positions 1 … n + 1 of 0 … limit - 1.
        over = len(prompt.answer_prefix) + max_new_tokens + 1 - (limit - 1)
        if over > 0:
            text = f"{len(prompt.answer_prefix)} tokens to continue and " if prompt.answer_prefix else ""
            raise PromptError(
                f"{text}max_new_tokens={max_new_tokens} are {over} more than the model's {limit} positions allow"
            )


def _check_text(text, way_out):
    if not isinstance(text, str):
        raise PromptError(f"a prompt is text, but this is {type(text).__name__}: {str(text)[:40]!r}")
    if not text.strip():
        raise PromptError(f"the prompt is empty: write a text, {way_out}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"the prompt holds bytes that are no text at character {error.start}: {text[error.start : error.end]!r}; "
            "give it in UTF-8"
        ) from None


def _permutation(order, count, text) -> list[int]:
    if isinstance(order, str):
        if order == "left-to-right":
            return list(range(count))
        if order == "right-to-left":
            return list(reversed(range(count)))
        if order == "random":
            return random.Random(text).sample(range(count), count)
        raise PromptError(
            f"unknown order {order!r}: 'left-to-right', 'right-to-left', 'random', or numbers such as (1, 0)"
        )
    numbers = [int(i) for i in order]
    if sorted(numbers) != list(range(count)):
        raise PromptError(f"order {tuple(numbers)} must name each of the {count} blanks (0 … {count - 1}) once")
    return numbers
