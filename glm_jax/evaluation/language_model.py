"""Language modelling as filling one blank: perplexity over overlapping windows, LAMBADA, and zero-shot multiple choice
(paper, section 3.3 and figure 4; the original's tasks/language_model)."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from glm_jax.model.losses import token_losses
from glm_jax.model.transformer import GLM
from glm_jax.tasks.encoding import Answer, Encoded, collate, encode_example
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example, Source, json_lines, open_text
from glm_jax.tasks.prompts import Cloze, ClozeContext
from glm_jax.tokenizers.base import Tokenizer
from glm_jax.tokenizers.special import SpecialTokens

_BUCKET = 64


def windows(
    special: SpecialTokens,
    document: Sequence[int],
    length: int,
    overlap: int | None = 32,
    *,
    unidirectional: bool = False,
) -> Iterator[Encoded]:
    """Every token of a document but the first, predicted once.

    (Without overlap and `unidirectional`, as in the original, the first token of each window is given.)

    Windows of length - 1 tokens start every `overlap` tokens (None: every length - 1). What a window predicts, and the
    one before did not reach, is its last `overlap` tokens; the others stand before the blank, in Part A. With
    `unidirectional` Part A holds the first token only, and the others come behind the start token, without loss.
    Rows: [CLS] prompt [gMASK] | [START] text; up to length + 1 tokens. Raises TaskError for lengths that leave nothing.
    """
    width = length - 1
    step = width if overlap is None else overlap
    if not 1 <= step <= width:
        raise TaskError(f"overlap {overlap} must lie between 1 and length - 1 = {width}")
    count = max(math.ceil(max(len(document) - width, 0) / step) + 1, 1)
    for number in range(count):
        tokens = list(document[number * step : number * step + width])
        prompt = 1 if number == 0 or unidirectional else width - step
        text = tokens[prompt:]
        if not text:
            continue
        context = [special.cls, *tokens[:prompt], special.generation_mask]
        known = max(0, width - step - 1) if number and unidirectional else 0
        yield encode_example(special.start, context, [Answer(len(context) - 1, text, known=known)])


def lambada_row(tokenizer: Tokenizer, text: str, length: int, *, unidirectional: bool = False) -> Encoded:
    """The last word of a passage as a blank: [CLS] context [gMASK] [EOS] | [START] word, cut on the left.

    With `unidirectional` only the first token of the context stands before the blank, the rest behind the start token.
    Raises TaskError for a text of fewer than two words.
    """
    if len(text.split()) < 2:
        raise TaskError(f"LAMBADA needs a context and a last word, not {text[:60]!r}")
    word = text.split()[-1]
    context = text.strip()[: -len(word)].strip()
    special = tokenizer.special
    answer = tokenizer.encode_continuation(" " + word)
    ids = tokenizer.encode(context)
    ids = ids[max(0, len(ids) + len(answer) + 3 - length) :]
    if not ids:
        raise TaskError(f"rows of {length} tokens leave no room before the word {word!r}: raise the length")
    before, behind = (ids[:1], ids[1:]) if unidirectional else (ids, [])
    part_a = [special.cls, *before, special.generation_mask, special.eos]
    blank = Answer(len(part_a) - 2, [*behind, *answer], known=len(behind))
    return encode_example(special.start, part_a, [blank])


def choice_source(path: str) -> Source:
    """Zero-shot multiple choice: lines {"inputs_pretokenized", "choices_pretokenized", "label"}."""

    def source(split):
        name = path.format(split=split)
        for number, record in json_lines(name):
            missing = {"inputs_pretokenized", "choices_pretokenized"} - set(record)
            if missing:
                raise TaskError(f"{name}, line {number}: there is no field {sorted(missing)[0]!r}")
            label, count = record.get("label"), len(record["choices_pretokenized"])
            if label is not None and (type(label) is not int or not 0 <= label < count):
                raise TaskError(f"{name}, line {number}: label {label!r} must be a choice's number, 0 to {count - 1}")
            yield Example(f"{split}-{number}", record, label)

    return source


def encode_choices(tokenizer: Tokenizer, fields: Any, length: int, *, unidirectional: bool = False) -> Cloze:
    """One candidate a choice, without end token; the question is cut on the left so that the longest choice fits.

    A question without [MASK] gets one at its end. With `unidirectional` the text itself comes behind the start token.
    Raises TaskError where the cut would take the blank.
    """
    special = tokenizer.special
    choices = [tokenizer.encode_continuation(text) for text in fields["choices_pretokenized"]]
    ids = tokenizer.encode_prompt(fields["inputs_pretokenized"])
    if not unidirectional and special.mask not in ids:
        ids.append(special.mask)
    ids = ids[max(0, len(ids) + max(map(len, choices)) + 2 - length) :]
    if unidirectional:
        context = ClozeContext((special.cls, special.generation_mask), 1)
        return Cloze(special.start, (context,), tuple((*ids, *c) for c in choices), False, known=len(ids))
    if special.mask not in ids:
        raise TaskError(f"{length} tokens lose the blank of {fields['inputs_pretokenized'][:60]!r}: raise the length")
    column = len(ids) - ids[::-1].index(special.mask)
    return Cloze(
        special.start, (ClozeContext((special.cls, *ids, special.eos), column),), tuple(map(tuple, choices)), False
    )


@dataclasses.dataclass(frozen=True)
class RowLoss:
    """-log p of a row's targets in nats, how many there were, and whether all were the model's first choice."""

    loss: float
    count: int
    greedy: bool


@functools.partial(jax.jit, static_argnames="model")
def _losses(params, batch, *, model):
    inputs = (batch.tokens, batch.position_ids, batch.block_position_ids, batch.prefix_lengths, batch.target_index)
    logits = model.apply({"params": params}, *inputs)
    missed = (logits.argmax(-1) != batch.target_ids) * batch.target_weights
    return (token_losses(logits, batch.target_ids) * batch.target_weights).sum(1), missed.sum(1) == 0


def row_losses(model: GLM, params: Any, rows: Sequence[Encoded], *, pad: int, batch_size: int = 8) -> list[RowLoss]:
    """The loss of every row, in their order; independent of batch size and padding but for the last bits."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: dict[int, RowLoss] = {}
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        padded = [rows[i] for i in chosen] + [rows[chosen[-1]]] * (batch_size - len(chosen))
        length = -(-max(map(len, padded)) // _BUCKET) * _BUCKET
        counts = [sum(row.target_weights) for row in padded]
        targets = -(-max(counts) // _BUCKET) * _BUCKET if max(counts) > 8 else 8
        batch = collate(padded, pad=pad, length=length, num_targets=targets)
        losses, greedy = map(np.asarray, _losses(params, batch, model=model))
        for i, number in enumerate(chosen):
            found[number] = RowLoss(float(losses[i]), counts[i], bool(greedy[i]))
    return [found[i] for i in range(len(rows))]


def perplexity(losses: Sequence[RowLoss], words: int) -> dict[str, float]:
    """Perplexity per token and per word, from the summed loss: exp of its mean over tokens, and over `words` - 1.

    `words` counts the space-separated words of the raw text, so that tokenizers can be compared.
    """
    total, count = sum(row.loss for row in losses), sum(row.count for row in losses)
    if not count or words < 2:
        raise TaskError("there is nothing to predict: the text is empty")
    return {
        "word_perplexity": math.exp(min(20.0, total / (words - 1))),
        "token_perplexity": math.exp(min(20.0, total / count)),
        "loss_per_token": total / count,
        "tokens": count,
        "words": words - 1,
    }


def read_document(path: str) -> tuple[str, int]:
    """A text file whole, and how many space-separated words it has."""
    with open_text(path) as file:
        text = file.read()
    words = len(text.strip().split(" "))
    if words < 2:
        raise TaskError(f"{path} has no text")
    return text, words
