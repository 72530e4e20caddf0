"""A checkpoint on a list of tasks: a table, JSON, and what the model said of every example."""

import os
from collections.abc import Sequence
from typing import Any

from glm_jax.evaluation import cloze
from glm_jax.evaluation import language_model as lm
from glm_jax.evaluation.results import LANGUAGE, Options, Result, _row, kind_and_file, result_of
from glm_jax.model.transformer import GLM
from glm_jax.tasks import metrics
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example, json_lines, read
from glm_jax.tasks.prompts import Cloze
from glm_jax.tasks.task import AnyTask, Prediction, Task, encoder_of, find, named_example
from glm_jax.tasks.text_cleaning import detokenize_wikitext
from glm_jax.tokenizers.base import Tokenizer


def evaluate(
    model: GLM, params: Any, tokenizer: Tokenizer, name: str, options: Options, data_dir: str = "data"
) -> Result:
    """One task, as a command names it.

    name: see `task.find`; or lm:FILE, wikitext:FILE (perplexity of a text, which wikitext detokenizes), lambada:FILE
    and choices:FILE (JSON lines). Raises TaskError for a task, split or example that cannot be used.
    """
    if not options.batch_size >= 1:
        raise TaskError(f"batch_size {options.batch_size} must be at least 1")
    kind, _, path = name.partition(":")
    if kind in LANGUAGE:
        if not path:
            raise TaskError(f"{kind} needs a file: {kind}:FILE")
        if options.length > model.config.num_positions:
            raise TaskError(
                f"length {options.length} is more than the model's {model.config.num_positions} positions: lower it"
            )
        measure = {"lm": _perplexity, "wikitext": _perplexity, "lambada": _lambada, "choices": _choices}[kind]
        return measure(model, params, tokenizer, name, path, options)
    task = find(name, data_dir)
    return run(model, params, tokenizer, task, options, None if name.endswith(".py") else name)


def run(
    model: GLM, params: Any, tokenizer: Tokenizer, task: AnyTask, options: Options, name: str | None = None
) -> Result:
    """One task, under `name` or its own: candidates are compared, or texts written and compared with references."""
    if options.head == "classifier":
        from glm_jax.evaluation import classifier

        return classifier.evaluate(model, params, tokenizer, task, options, name)
    if isinstance(task, Task):
        return evaluate_cloze(model, params, tokenizer, task, options, name)
    from glm_jax.evaluation.generation import generate

    numbers, rows = generate(model, params, tokenizer, task, options)
    return Result(name or task.name, options.split, len(rows), numbers, rows)


def evaluate_cloze(
    model: GLM, params: Any, tokenizer: Tokenizer, task: Task, options: Options, name: str | None = None
) -> Result:
    """Zero-shot cloze: every candidate's score, and the task's own numbers."""
    examples = read(task.source, options.split, options.limit)
    encoder = encoder_of(task, tokenizer, model.config.num_positions, options.multi_token)
    own = options.share.of(examples)
    encoded = [named_example(example, encoder.encode, task.prompt, example.fields) for example in own]
    scores = _scores(model, params, tokenizer, encoded, options, 2 * encoder.max_length, task.length_penalty)
    pairs = options.share.join([(s.values.tolist(), s.greedy.tolist()) for s in scores])
    return result_of(task, examples, [(values, greedy) for values, greedy in pairs], options, name)


def _scores(model, params, tokenizer, encoded: Sequence[Cloze], options, row_length, length_penalty=0.0):
    return cloze.candidate_logprobs(
        model,
        params,
        encoded,
        pad=tokenizer.special.pad,
        batch_size=options.batch_size,
        row_length=row_length,
        length_penalty=length_penalty,
    )


def _choices(model, params, tokenizer, name, path, options):
    examples = read(lm.choice_source(path), options.split, options.limit)

    def encode(example):
        return lm.encode_choices(tokenizer, example.fields, options.length, unidirectional=options.unidirectional)

    encoded = [named_example(example, encode, example) for example in examples]
    predictions = []
    scores = _scores(model, params, tokenizer, encoded, options, 2 * options.length)
    for example, found in zip(examples, scores, strict=True):
        texts = tuple(example.fields["choices_pretokenized"])
        values, greedy = tuple(found.values.tolist()), tuple(found.greedy.tolist())
        predictions.append(Prediction(example, texts, values, example.label, greedy))
    rows = [_row(p, os.path.basename(path)) for p in predictions]
    return Result(kind_and_file(name), os.path.basename(path), len(examples), metrics.accuracy(predictions), rows)


def _lambada(model, params, tokenizer, name, path, options):
    examples = []
    for number, record in json_lines(path):
        if options.limit is not None and len(examples) >= options.limit:
            break
        if not isinstance(record.get("text"), str):
            raise TaskError(f"{path}, line {number}: there is no text under 'text'")
        examples.append(Example(f"line-{number}", record))
    if not examples:
        raise TaskError(f"{path} has no examples")

    def encode(example):
        text = example.fields["text"]
        return lm.lambada_row(tokenizer, text, options.length, unidirectional=options.unidirectional)

    rows = [named_example(example, encode, example) for example in examples]
    losses = lm.row_losses(model, params, rows, pad=tokenizer.special.pad, batch_size=options.batch_size)
    right = sum(loss.greedy for loss in losses)
    predictions = [
        {
            "id": e.id,
            "split": os.path.basename(path),
            "word": e.fields["text"].split()[-1],
            "right": loss.greedy,
            "loss": loss.loss,
        }
        for e, loss in zip(examples, losses, strict=True)
    ]
    numbers = {"accuracy": 100 * right / len(rows), "loss_per_word": sum(loss.loss for loss in losses) / len(rows)}
    return Result(kind_and_file(name), os.path.basename(path), len(rows), numbers, predictions)


def _perplexity(model, params, tokenizer, name, path, options):
    text, words = lm.read_document(path)
    if name.startswith("wikitext"):
        text = detokenize_wikitext(text)
    ids = tokenizer.encode(text)
    special = tokenizer.special
    overlap = options.overlap if options.overlap is None else min(options.overlap, options.length - 1)
    rows = list(lm.windows(special, ids, options.length, overlap, unidirectional=options.unidirectional))
    shown = rows[: options.limit]
    losses = lm.row_losses(model, params, shown, pad=special.pad, batch_size=options.batch_size)
    share = sum(sum(row.target_weights) for row in shown) / max(1, sum(sum(row.target_weights) for row in rows))
    numbers = lm.perplexity(losses, max(2, round(words * share)))
    predictions = [
        {"id": f"window-{i}", "split": os.path.basename(path), "loss": loss.loss, "tokens": loss.count}
        for i, loss in enumerate(losses)
    ]
    return Result(kind_and_file(name), os.path.basename(path), len(shown), numbers, predictions)
