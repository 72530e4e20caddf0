"""Synthetic examples of a task, for measuring and planning a config without its data and its checkpoint."""

import dataclasses
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from glm_jax import data
from glm_jax.config import OVERRIDABLE
from glm_jax.data.synthetic import SPECIAL
from glm_jax.model.config import GLMConfig
from glm_jax.tasks.batch import TaskBatch
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example
from glm_jax.tasks.task import AnyTask, Task
from glm_jax.tokenizers.base import Tokenizer
from glm_jax.tuning.task import FinetuningTask, check_keys, tasks_of


def synthetic_task(
    config: ConfigDict, size: str, words: int = 200, **overrides: Any
) -> tuple[FinetuningTask, TaskBatch]:
    """The prepared training task of `config` for a model of a named `size`, and its first rows.

    Every field of an example has `words` random words, truncated to the task's lengths; `overrides` replace fields of
    the model's GLMConfig. Raises ValueError for a config with several tasks, or with one whose examples need more than
    texts and a label.
    """
    check_keys(config)
    tasks = tasks_of(config)
    if len(tasks) != 1:
        raise ValueError(f"the config has {len(tasks)} tasks: take one at a time with --config.tasks=\"('NAME',)\"")
    config = config.copy_and_resolve_references()
    tuned = {key: config.model[key] for key in OVERRIDABLE if config.model[key] is not None}
    model = GLMConfig.named(size, **{**tuned, **overrides})
    with config.unlocked(), config.model.ignore_type():
        fields = dataclasses.asdict(model)
        config.model.update({key: fields[key] for key in config.model if key in fields})
    if config.head == "classifier":
        with config.unlocked(), config.ignore_type():
            config.classes = len(tasks[0].template.verbalizer)
    examples = list(itertools.islice(_synthetic_examples(tasks[0], words), 4 * config.batch_size))
    task = dataclasses.replace(tasks[0], source=lambda split: examples)
    try:
        training = FinetuningTask(config, _WordHashes(model.vocab_size), tasks=[task])
        training.prepare()
        first = next(data.train_iterator(training.train_rows, batch_size=config.batch_size, seed=config.seed))
    except TaskError as error:
        raise ValueError(
            f"examples of {task.name} need more than texts and a label ({error!s:.80} …): "
            "take ag_news, boolq, rte or cb"
        ) from error
    return training, training.rows(first)


class _WordHashes(Tokenizer):
    """One token per word; a measurement needs no vocabulary."""

    def __init__(self, size: int):
        self.special, self.num_tokens, self.pad_vocab_to_multiple_of = SPECIAL, size, 1

    def encode(self, text: str) -> list[int]:
        return [9 + zlib.crc32(word.encode()) % (self.num_tokens - 9) for word in text.split()]

    def decode(self, ids: Sequence[int], *, print_special: bool = False) -> str:
        return " ".join(map(self.id_to_token, ids))

    def id_to_token(self, token_id: int) -> str:
        return str(token_id)

    def fingerprint(self) -> str:
        return f"hashes of words, {self.num_tokens}"

    def files(self) -> dict[str, bytes]:
        return {}

    def settings(self) -> dict[str, Any]:
        return {}


class _Fields(dict):
    """Any field that a pattern asks for, as a random text of `words` words."""

    def __init__(self, number: int, words: int):
        super().__init__(number=str(number))
        self._number, self._words = number, words

    def __contains__(self, name) -> bool:
        return True

    def __missing__(self, name) -> str:
        random = np.random.default_rng(zlib.crc32(f"{name} {self._number}".encode()))
        return " ".join(map(str, random.integers(0, 10_000, self._words)))


def _synthetic_examples(task: AnyTask, words: int) -> Iterator[Example]:
    labels: Mapping | None = task.template.verbalizer if isinstance(task, Task) else None
    for number, label in enumerate(itertools.cycle(labels or [None])):
        yield Example(f"synthetic-{number}", _Fields(number, words), label)
