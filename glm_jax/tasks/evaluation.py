"""A checkpoint on a list of tasks: a table, JSON, and what the model said of every example."""

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from glm_jax import hosts
from glm_jax.checkpoint import write_json_atomic
from glm_jax.model import GLM
from glm_jax.tasks import language_modelling as lm
from glm_jax.tasks import metrics, scoring
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example, json_lines, read
from glm_jax.tasks.prompts import Cloze
from glm_jax.tasks.task import AnyTask, Prediction, Task, encoder_of, find, named_example
from glm_jax.tasks.text_cleaning import detokenize_wikitext
from glm_jax.tokenizers.base import Tokenizer

logger = logging.getLogger(__name__)

LANGUAGE = ("lm", "wikitext", "lambada", "choices")


@dataclasses.dataclass(frozen=True)
class Share:
    """Which examples this process scores: every `count`-th, from `index`. All processes get the results of all."""

    index: int = 0
    count: int = 1

    def of(self, items: Sequence[Any]) -> Sequence[Any]:
        """This process's part."""
        return items[self.index :: self.count]

    def join(self, results: Sequence[Any]) -> list[Any]:
        """The results of all items, in their order, from those of this process's part: JSON values."""
        if self.count == 1:
            return list(results)
        parts = hosts.gather(list(results))
        joined: list[Any] = [None] * sum(map(len, parts))
        for index in range(self.count):
            joined[index :: self.count] = parts[index]
        return joined


@dataclasses.dataclass(frozen=True)
class Options:
    """How tasks are evaluated.

    Attributes:
      split: of tasks that have splits.
      limit: this many examples of each task; None takes all.
      batch_size: rows of a forward pass; it changes no result.
      length: tokens of a window or passage, for language modelling.
      overlap: new tokens of a window; None does not overlap windows.
      unidirectional: whether the context stands behind the start token instead of in Part A.
      multi_token: see `PromptEncoder`.
      share: of the examples, on many processes.
      head: of tasks with fixed classes: "cloze", or "classifier" for params["classifier"].
    """

    split: str = "validation"
    limit: int | None = None
    batch_size: int = 16
    length: int = 512
    overlap: int | None = 256
    unidirectional: bool = False
    multi_token: bool | None = None
    head: str = "cloze"
    share: Share = Share()


@dataclasses.dataclass(frozen=True)
class Result:
    """The numbers of one task, on how many examples of which split, and its predictions as JSON objects."""

    task: str
    split: str
    count: int
    numbers: dict[str, float]
    predictions: list[dict]


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
        from glm_jax.tasks import classifier

        return classifier.evaluate(model, params, tokenizer, task, options, name)
    if isinstance(task, Task):
        return classify(model, params, tokenizer, task, options, name)
    from glm_jax.tasks.generation import generate

    numbers, rows = generate(model, params, tokenizer, task, options)
    return Result(name or task.name, options.split, len(rows), numbers, rows)


def classify(
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


def result_of(
    task: Task,
    examples: Sequence[Example],
    scores: Sequence[tuple[Sequence[float], Sequence[bool]]],
    options: Options,
    name: str | None = None,
) -> Result:
    """The task's numbers from the scores of each example's candidates, and whether greedy decoding writes them.

    Of a split without labels there are no numbers, only predictions.
    """
    predictions = []
    for example, (values, greedy) in zip(examples, scores, strict=True):
        texts = tuple(task.prompt.texts(example.fields))
        predictions.append(Prediction(example, texts, tuple(values), _label(task, example), tuple(greedy)))
    try:
        numbers = task.score(predictions)
    except metrics.NoLabels:
        logger.warning("%s, %s: no example has a label; the predictions are kept", task.name, options.split)
        numbers = {}
    rows = [_row(p, options.split) for p in predictions]
    return Result(name or task.name, options.split, len(examples), numbers, rows)


def _label(task, example):
    if example.label is None and task.prompt.target is None:
        return None
    return named_example(example, task.prompt.label_index, example.label, example.fields)


def _scores(model, params, tokenizer, encoded: Sequence[Cloze], options, row_length, length_penalty=0.0):
    return scoring.score(
        model,
        params,
        encoded,
        pad=tokenizer.special.pad,
        batch_size=options.batch_size,
        row_length=row_length,
        length_penalty=length_penalty,
    )


def _row(prediction: Prediction, split):
    texts = prediction.texts
    pairs = zip(texts, prediction.scores, strict=True)
    return {
        "id": prediction.example.id,
        "idx": prediction.example.fields.get("idx"),
        "split": split,
        "prediction": texts[prediction.choice].strip(),
        "label": None if prediction.label is None else texts[prediction.label].strip(),
        "scores": {f"{i}: {text.strip()}": score for i, (text, score) in enumerate(pairs)},
    }  # fmt: skip


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


def kind_and_file(name: str) -> str:
    """lambada:FOLDER/FILE without its folder."""
    kind, _, path = name.partition(":")
    return f"{kind}:{os.path.basename(path)}"


def table(results: Sequence[Result]) -> str:
    """Lines for people: a number a line, each with its split and count."""
    rows = [("task", "split", "examples", "metric", "value")]
    for result in results:
        for metric, value in result.numbers.items():
            rows.append((result.task, result.split, str(result.count), metric, f"{value:.2f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _write_text(path, lines):
    with open(path + ".partial", "w", encoding="utf-8") as file:
        file.writelines(lines)
    os.replace(path + ".partial", path)


def write(results: Sequence[Result], folder: str, checkpoint: str) -> None:
    """results.json, and predictions-TASK.jsonl for every task, each in one move.

    Tasks that write texts also get hypotheses-TASK.txt and references-TASK.txt, a line an example.
    """
    os.makedirs(folder, exist_ok=True)
    names: list[str] = []
    for result in results:
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in result.task)
        names.append(safe if safe not in names else f"{safe}-{len(names)}")
        rows = (json.dumps(row, ensure_ascii=False) + "\n" for row in result.predictions)
        _write_text(os.path.join(folder, f"predictions-{names[-1]}.jsonl"), rows)
        if result.predictions and "reference" in result.predictions[0]:
            for key, kind in (("prediction", "hypotheses"), ("reference", "references")):
                lines = [" ".join(row[key].split()) + "\n" for row in result.predictions]
                _write_text(os.path.join(folder, f"{kind}-{names[-1]}.txt"), lines)
    summary = [
        {"task": r.task, "split": r.split, "examples": r.count, "checkpoint": checkpoint, **r.numbers} for r in results
    ]
    write_json_atomic(os.path.join(folder, "results.json"), summary)
