"""What an evaluation is asked for, and what it gives: options, results, tables, files."""

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from glm_jax.distributed import processes
from glm_jax.files import write_json_atomic
from glm_jax.tasks import metrics
from glm_jax.tasks.examples import Example
from glm_jax.tasks.task import Prediction, Task, named_example

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
        parts = processes.allgather(list(results))
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
