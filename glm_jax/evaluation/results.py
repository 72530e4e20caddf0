"""Options and results of an evaluation, as tables and files."""

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from glm_jax.distributed import processes
from glm_jax.files import file_name, text_table, write_atomic, write_json_atomic
from glm_jax.tasks import metrics
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example
from glm_jax.tasks.task import Prediction, Task

logger = logging.getLogger(__name__)

HEADS = ("cloze", "classifier")
RESULTS = "results.json"  # of `write_results`


@dataclasses.dataclass(frozen=True)
class Share:
    """Which examples this process scores: every `count`-th, from `index`. Every process gets all results."""

    index: int = 0
    count: int = 1

    def of(self, items: Sequence[Any]) -> Sequence[Any]:
        """The items of this process."""
        return items[self.index :: self.count]

    def join(self, results: Sequence[Any]) -> list[Any]:
        """The results of all items, in their order, from those of this process's items. Results are JSON values."""
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
      limit: maximum number of examples of each task; None: all.
      batch_size: rows of a forward pass; it does not change results.
      length: tokens of a window or passage, for language modelling.
      overlap: new tokens of a window; None: windows do not overlap.
      unidirectional: whether the context follows the start token instead of being in Part A.
      multi_token: see `TemplateEncoder`.
      share: of the examples, on many processes.
      head: of tasks with fixed classes: "cloze", or "classifier" for params["classifier"].
      pool: the token that a classifier reads; see `classifier_logits`.

    Raises:
      TaskError: a number below 1, or an unknown head.
    """

    split: str = "validation"
    limit: int | None = None
    batch_size: int = 16
    length: int = 512
    overlap: int | None = 256
    unidirectional: bool = False
    multi_token: bool | None = None
    head: str = "cloze"
    pool: str = "cls"
    share: Share = Share()

    def __post_init__(self):
        for name in ("batch_size", "length", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise TaskError(f"{name} {value} must be at least 1")
        if self.head not in HEADS:
            raise TaskError(f"unknown head {self.head!r}; known: {', '.join(HEADS)}")


@dataclasses.dataclass(frozen=True)
class Result:
    """The metric's numbers for one task, the split and its number of examples, and predictions as JSON objects."""

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
    """The result of a task from the scores of each example's candidates, and whether greedy decoding writes them.

    A split without labels has no numbers, only predictions.

    Raises:
      TaskError: a label outside the task's template.
    """
    predictions = []
    for example, (values, greedy) in zip(examples, scores, strict=True):
        texts = tuple(task.template.texts(example.fields))
        predictions.append(Prediction(example, texts, tuple(values), task.label_index(example), tuple(greedy)))
    try:
        numbers = task.metric(predictions)
    except metrics.NoLabels:
        logger.warning("%s, %s: no example has a label; the predictions are kept", task.name, options.split)
        numbers = {}
    rows = [prediction_row(p, options.split) for p in predictions]
    return Result(name or task.name, options.split, len(examples), numbers, rows)


def prediction_row(prediction: Prediction, split: str) -> dict[str, Any]:
    """A prediction as a JSON object."""
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


def results_table(results: Sequence[Result]) -> str:
    """A text table with one number a line, its split and its number of examples."""
    rows = [("task", "split", "examples", "metric", "value")]
    for result in results:
        for metric, value in result.numbers.items():
            rows.append((result.task, result.split, str(result.count), metric, f"{value:.2f}"))
    lines = text_table(rows)
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def write_results(results: Sequence[Result], folder: str, checkpoint: str) -> None:
    """Writes results.json, and predictions-TASK.jsonl for every task, each atomically.

    Tasks that generate texts also get hypotheses-TASK.txt and references-TASK.txt, one line an example.
    """
    os.makedirs(folder, exist_ok=True)
    names: list[str] = []
    for result in results:
        safe = file_name(result.task)
        names.append(safe if safe not in names else f"{safe}-{len(names)}")
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in result.predictions)
        write_atomic(os.path.join(folder, f"predictions-{names[-1]}.jsonl"), lines)
        if result.predictions and "reference" in result.predictions[0]:
            for key, kind in (("prediction", "hypotheses"), ("reference", "references")):
                lines = "".join(" ".join(row[key].split()) + "\n" for row in result.predictions)
                write_atomic(os.path.join(folder, f"{kind}-{names[-1]}.txt"), lines)
    summary = [
        {
            "task": r.task, "split": r.split, "examples": r.count, "checkpoint": checkpoint,
            "main_metric": next(iter(r.numbers), None), **r.numbers,
        }
        for r in results
    ]  # fmt: skip
    write_json_atomic(os.path.join(folder, RESULTS), summary)  # last: who sees it sees all
