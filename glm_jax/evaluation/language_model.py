"""Language modelling as filling one blank: perplexity over overlapping windows, LAMBADA, and zero-shot multiple choice
(paper, section 3.3 and figure 4; the original's tasks/language_model)."""

import dataclasses
import functools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from glm_jax.evaluation.cloze import candidate_logprobs
from glm_jax.evaluation.results import Options, Result, prediction_row
from glm_jax.model.losses import token_losses
from glm_jax.model.transformer import GLM
from glm_jax.tasks import metrics
from glm_jax.tasks.batch import batches_by_length
from glm_jax.tasks.encoding import Encoded, check_row, encode_candidates, encode_example
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example, Source, error_context, json_lines, open_text, read
from glm_jax.tasks.task import Prediction
from glm_jax.tasks.text_cleaning import detokenize_wikitext
from glm_jax.tokenizers.base import Tokenizer
from glm_jax.tokenizers.special import SpecialTokens


def windows(
    special: SpecialTokens,
    document: Sequence[int],
    length: int,
    overlap: int | None = 32,
    *,
    unidirectional: bool = False,
) -> Iterator[Encoded]:
    """Rows that predict every token of a document but the first, once.

    (With `overlap=None` and `unidirectional`, as in the original, the first token of each window is given.)

    Windows of length - 1 tokens start every `overlap` tokens (None: every length - 1 tokens). A window predicts its
    last `overlap` tokens, which the window before it did not reach; the others precede the blank, in Part A. With
    `unidirectional` Part A holds the first token only, and the others follow the start token, without loss.
    Rows: [CLS] prompt [gMASK] | [START] text; up to length + 1 tokens.

    Raises:
      TaskError: lengths that leave nothing to predict.
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
        given = max(0, width - step - 1) if number and unidirectional else 0
        yield encode_example(special.start, context, [len(context) - 1], [text], given=given)


def lambada_row(tokenizer: Tokenizer, text: str, length: int, *, unidirectional: bool = False) -> Encoded:
    """The last word of a passage as a blank: [CLS] context [gMASK] [EOS] | [START] word, cut on the left.

    With `unidirectional` only the first token of the context precedes the blank; the others follow the start token.

    Raises:
      TaskError: a text of fewer than two words.
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
    prompt, given = (ids[:1], ids[1:]) if unidirectional else (ids, [])
    part_a = [special.cls, *prompt, special.generation_mask, special.eos]
    return encode_example(special.start, part_a, [len(part_a) - 2], [[*given, *answer]], given=len(given))


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


def encode_choices(
    tokenizer: Tokenizer,
    fields: Mapping[str, Any],
    length: int,
    *,
    unidirectional: bool = False,
    row_length: int | None = None,
) -> list[Encoded]:
    """Every choice as a candidate, without end token; the question is cut on the left so that the longest choice fits.

    A question without [MASK] gets one at its end. With `unidirectional` the question follows the start token, and is
    given. `row_length`: see `encode_candidates`.

    Raises:
      TaskError: the cut would remove the blank.
    """
    special = tokenizer.special
    choices = [tokenizer.encode_continuation(text) for text in fields["choices_pretokenized"]]
    ids = tokenizer.encode_prompt(fields["inputs_pretokenized"])
    if not unidirectional and special.mask not in ids:
        ids.append(special.mask)
    ids = ids[max(0, len(ids) + max(map(len, choices)) + 2 - length) :]
    if unidirectional:
        context, candidates = [special.cls, special.generation_mask], [[*ids, *choice] for choice in choices]
        return encode_candidates(special.start, context, 1, candidates, given=len(ids), row_length=row_length)
    if special.mask not in ids:
        raise TaskError(f"{length} tokens lose the blank of {fields['inputs_pretokenized'][:60]!r}: raise the length")
    blank = len(ids) - ids[::-1].index(special.mask)
    return encode_candidates(special.start, [special.cls, *ids, special.eos], blank, choices, row_length=row_length)


@dataclasses.dataclass(frozen=True)
class RowLoss:
    """The loss of a row's targets (sum, nats), their number, and whether all were the model's first choice."""

    loss: float
    count: int
    greedy: bool


@functools.partial(jax.jit, static_argnames="model")
def _losses(params, batch, *, model):
    logits = model.apply({"params": params}, **batch.model_inputs())
    missed = (logits.argmax(-1) != batch.target_ids) * batch.target_weights
    return (token_losses(logits, batch.target_ids) * batch.target_weights).sum(1), missed.sum(1) == 0


def row_losses(model: GLM, params: Any, rows: Sequence[Encoded], *, pad: int, batch_size: int = 8) -> list[RowLoss]:
    """The loss of every row, in their order. Batch size and padding change only the last bits.

    Raises ValueError and TaskError as `check_row`.
    """
    for row in rows:
        check_row(row, model.config)
    result: dict[int, RowLoss] = {}
    for numbers, batch in batches_by_length(rows, batch_size, pad=pad, target_multiple=64):
        losses, greedy = map(np.asarray, _losses(params, batch, model=model))
        for i, number in enumerate(numbers):
            result[number] = RowLoss(float(losses[i]), len(rows[number].target_ids), bool(greedy[i]))
    return [result[i] for i in range(len(rows))]


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
    """The text of a file, and its number of space-separated words."""
    with open_text(path) as file:
        text = file.read()
    words = len(text.strip().split(" "))
    if words < 2:
        raise TaskError(f"{path} has no text")
    return text, words


def evaluate_perplexity(
    model: GLM, params: Any, tokenizer: Tokenizer, name: str, path: str, options: Options
) -> Result:
    """Perplexity of a text file, named lm:FILE, or wikitext:FILE to detokenize it first."""
    text, words = read_document(path)
    if name.startswith("wikitext"):
        text = detokenize_wikitext(text)
    ids = tokenizer.encode(text)
    special = tokenizer.special
    overlap = options.overlap if options.overlap is None else min(options.overlap, options.length - 1)
    rows = list(windows(special, ids, options.length, overlap, unidirectional=options.unidirectional))
    limited = rows[: options.limit]
    losses = row_losses(model, params, limited, pad=special.pad, batch_size=options.batch_size)
    share = sum(len(row.target_ids) for row in limited) / max(1, sum(len(row.target_ids) for row in rows))
    numbers = perplexity(losses, max(2, round(words * share)))
    predictions = [
        {"id": f"window-{i}", "split": os.path.basename(path), "loss": loss.loss, "tokens": loss.count}
        for i, loss in enumerate(losses)
    ]
    return Result(_short_name(name, path), os.path.basename(path), len(limited), numbers, predictions)


def evaluate_lambada(model: GLM, params: Any, tokenizer: Tokenizer, name: str, path: str, options: Options) -> Result:
    """Accuracy of the last word of each {"text": …} in a file of JSON lines, named lambada:FILE."""
    examples = []
    for number, record in json_lines(path):
        if options.limit is not None and len(examples) >= options.limit:
            break
        if not isinstance(record.get("text"), str):
            raise TaskError(f"{path}, line {number}: there is no text under 'text'")
        examples.append(Example(f"line-{number}", record))
    if not examples:
        raise TaskError(f"{path} has no examples")
    rows = []
    for example in examples:
        with error_context(example):
            text = example.fields["text"]
            rows.append(lambada_row(tokenizer, text, options.length, unidirectional=options.unidirectional))
    losses = row_losses(model, params, rows, pad=tokenizer.special.pad, batch_size=options.batch_size)
    predictions = [
        {
            "id": example.id,
            "split": os.path.basename(path),
            "word": example.fields["text"].split()[-1],
            "right": loss.greedy,
            "loss": loss.loss,
        }
        for example, loss in zip(examples, losses, strict=True)
    ]
    right, total = sum(loss.greedy for loss in losses), sum(loss.loss for loss in losses)
    numbers = {"accuracy": 100 * right / len(rows), "loss_per_word": total / len(rows)}
    return Result(_short_name(name, path), os.path.basename(path), len(rows), numbers, predictions)


def evaluate_choices(model: GLM, params: Any, tokenizer: Tokenizer, name: str, path: str, options: Options) -> Result:
    """Accuracy of zero-shot multiple choice in a file of JSON lines, named choices:FILE; see `choice_source`."""
    examples = read(choice_source(path), options.split, options.limit)
    encoded = []
    for example in examples:
        with error_context(example):
            encoded.append(
                encode_choices(
                    tokenizer, example.fields, options.length, unidirectional=options.unidirectional,
                    row_length=2 * options.length,
                )
            )  # fmt: skip
    scores = candidate_logprobs(model, params, encoded, pad=tokenizer.special.pad, batch_size=options.batch_size)
    predictions = [
        Prediction(
            example,
            tuple(example.fields["choices_pretokenized"]),
            tuple(score.values.tolist()),
            example.label,
            tuple(score.greedy.tolist()),
        )
        for example, score in zip(examples, scores, strict=True)
    ]
    rows = [prediction_row(p, os.path.basename(path)) for p in predictions]
    return Result(_short_name(name, path), os.path.basename(path), len(examples), metrics.accuracy(predictions), rows)


def _short_name(name, path):
    """lambada:FOLDER/FILE without its folder."""
    return f"{name.partition(':')[0]}:{os.path.basename(path)}"
