"""Prompts in, filled text out: every task as filling blanks (paper, section 2.3)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from glm_jax.decoding.greedy import fill_blanks
from glm_jax.model import GLM
from glm_jax.tokenizers.base import MASK_WORDS, Tokenizer

_BUCKET = 64  # prompt and buffer lengths are rounded up to this, so that one compiled program serves many prompts


class PromptError(ValueError):
    """A prompt that cannot be filled."""


@dataclasses.dataclass(frozen=True)
class Filled:
    """A filled prompt: the whole text, and the answer of each blank from left to right."""

    text: str
    answers: tuple[str, ...]


def fill(
    model: GLM, params, tokenizer: Tokenizer, prompts: str | Sequence[str], *, max_new_tokens: int | None = None
) -> list[Filled]:
    """Fills every blank ([MASK], [sMASK], [gMASK]) of each prompt by greedy decoding.

    Blanks are filled from left to right and see the earlier answers. An answer has `max_new_tokens` tokens at most;
    None is 64, or what the model's positions allow.
    Raises PromptError for an empty prompt, one without a blank, and one that the model's positions cannot hold.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    limit = model.config.num_positions
    max_new_tokens = min(64, limit - 2) if max_new_tokens is None else max_new_tokens
    if max_new_tokens < 1:
        raise PromptError(f"max_new_tokens is {max_new_tokens}, but an answer needs at least 1")
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) > limit:
            raise PromptError(
                f"prompt of {len(ids)} tokens is {len(ids) - limit} longer than the model's {limit} positions: "
                f"shorten it ({prompt[:40]!r}…)"
            )
    if max_new_tokens > limit - 2:
        raise PromptError(f"max_new_tokens={max_new_tokens} is more than the model's positions allow: {limit - 2}")
    answers = fill_ids(model, params, tokenizer.special, encoded, max_new_tokens=max_new_tokens)
    return [_filled(tokenizer, ids, spans) for ids, spans in zip(encoded, answers, strict=True)]


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Part A of a prompt: [CLS] prompt [EOS]; no [EOS] behind a final [gMASK], as in the original.

    Raises PromptError for text without a blank; the message lists the masks.
    """
    if not prompt.strip():
        raise PromptError(
            "the prompt is empty: write a text with a blank, such as 'In the beginning [MASK] the heaven.'"
        )
    special = tokenizer.special
    ids = tokenizer.encode_prompt(prompt)
    if not any(i in blank_ids(special) for i in ids):
        raise PromptError(f"no blank in {prompt[:60]!r}: mark one with {', '.join(MASK_WORDS)}")
    open_end = prompt.rstrip().endswith("[gMASK]")
    return [special.cls, *ids] + ([] if open_end else [special.eos])


def blank_ids(special) -> tuple[int, int, int]:
    """The ids that stand for a blank in Part A."""
    return special.mask, special.sentence_mask, special.generation_mask


def fill_ids(model: GLM, params, special, prompts: Sequence[Sequence[int]], *, max_new_tokens: int):
    """Answers for encoded prompts (Part A): for each, one list of ids a blank, from left to right."""
    masks = blank_ids(special)
    columns = [[i for i, token in enumerate(ids) if token in masks] for ids in prompts]
    most = max(map(len, columns))
    width = -(-max(map(len, prompts)) // _BUCKET) * _BUCKET
    length = -(-(width + most * (max_new_tokens + 1) + 1) // _BUCKET) * _BUCKET
    tokens = np.full((len(prompts), width), special.pad, np.int32)
    blanks = np.full((len(prompts), most), -1, np.int32)
    for row, (ids, at) in enumerate(zip(prompts, columns, strict=True)):
        tokens[row, : len(ids)] = ids
        blanks[row, : len(at)] = at
    parts = fill_blanks(
        params,
        tokens,
        np.array([len(ids) for ids in prompts], np.int32),
        blanks,
        model=model,
        start=special.start,
        stops=tuple({special.end, special.eos}),
        max_new_tokens=max_new_tokens,
        length=length,
    )
    return [_split(row, places) for row, places in zip(*map(np.asarray, parts), strict=True)]


def _split(tokens, block_positions) -> list[list[int]]:
    answers = []
    for token, place in zip(tokens.tolist(), block_positions.tolist(), strict=True):
        if place == 1:  # the start token
            answers.append([])
        elif place:
            answers[-1].append(token)
    return answers


def _filled(tokenizer, ids, answers):
    special, remaining, whole = tokenizer.special, iter(answers), []
    for token in ids:
        whole.extend(next(remaining, ()) if token in blank_ids(special) else [token])
    return Filled(tokenizer.decode(whole), tuple(tokenizer.decode(answer) for answer in answers))
