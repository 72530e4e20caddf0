"""How fast fine-tuning is: examples per second of one step of a config, on synthetic examples of its task."""

import dataclasses
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from glm_jax import data
from glm_jax.benchmarks.timing import time_against_matmuls
from glm_jax.config import OVERRIDABLE
from glm_jax.data.synthetic import SPECIAL
from glm_jax.model.config import GLMConfig
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example
from glm_jax.tasks.task import AnyTask, Task
from glm_jax.tokenizers.base import Tokenizer
from glm_jax.training import setup
from glm_jax.training.flops import useful_flops
from glm_jax.tuning.task import FinetuningTask, check_keys, tasks_of


def run(config: ConfigDict, size: str = "base", words: int = 200, **overrides: Any) -> dict:
    """One optimizer step on examples whose fields have `words` random words each, truncated to the task's lengths.

    `size` names the model in place of the config's checkpoint; `overrides` replace fields of its GLMConfig.

    Raises ValueError for a config with several tasks, or with one whose examples need more than texts and a label.
    """
    check_keys(config)
    tasks = tasks_of(config)
    if len(tasks) != 1:
        raise ValueError(f"the config has {len(tasks)} tasks: measure one at a time with --config.tasks=\"('NAME',)\"")
    config = config.copy_and_resolve_references()
    tuned = {key: config.model[key] for key in OVERRIDABLE if config.model[key] is not None}
    model = GLMConfig.named(size, **{**tuned, **overrides})
    with config.unlocked(), config.model.ignore_type():
        config.model.update(dataclasses.asdict(model))
    if config.head == "classifier":
        with config.unlocked(), config.ignore_type():
            config.classes = len(tasks[0].template.verbalizer)
    examples = list(itertools.islice(_synthetic_examples(tasks[0], words), 4 * config.batch_size))
    tokenizer = _WordHashes(model.vocab_size)
    task = dataclasses.replace(tasks[0], source=lambda split: examples)
    try:
        training = FinetuningTask(config, tokenizer, tasks=[task])
        training.prepare()
        first = next(data.train_iterator(training.train_rows, batch_size=config.batch_size, seed=config.seed))
    except TaskError as error:
        raise ValueError(
            f"examples of {task.name} need more than texts and a label ({error!s:.80} …): "
            "measure ag_news, boolq, rte or cb"
        ) from error
    mesh, rules = setup.check_mesh(config)
    built = training.make_setup(setup.resolve_durations(config, rows=len(training.train_rows)), mesh, rules)
    rows = training.rows(first)
    with built.activate():
        state = [built.init(jax.random.key(0))]

        def step():
            state[0], metrics = built.train_step(state[0], rows)
            return metrics

        measured = time_against_matmuls(step, model.dtype)
    rate = measured.flops_per_second * jax.device_count()
    flops = useful_flops(model, rows) / config.batch_size
    return {
        "value": config.batch_size / measured.seconds,
        "unit": "examples/s",
        "bound": rate / flops,
        "bound_unit": f"examples/s if each took its {flops / 1e9:.1f} useful GFLOP at {rate / 1e9:.0f} GFLOP/s, "
        "measured with plain matmuls before and after every step",
        "fraction_of_bound": config.batch_size * flops / (measured.flops * jax.device_count()),
        "seconds_per_step": measured.seconds,
        "task": task.name,
        "model": size,
        "dtype": model.dtype,
        "batch_size": config.batch_size,
        "columns": int(rows.tokens.shape[1]),
        "columns_in_use": float(np.where(rows.target_weights > 0, rows.target_index + 1, 0).max(1).mean()),
        "counting": "useful work as in training/flops.py: real positions, visible pairs, targets; backward twice",
    }


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
