"""What fine-tuning learns from: tasks, as glm_jax/training/pretraining.py is text."""

import contextlib
import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from glm_jax.config import model_config
from glm_jax.data.packing import Mixture
from glm_jax.distributed import sharding
from glm_jax.evaluation.results import Options, Result, Share
from glm_jax.evaluation.run import evaluate_task
from glm_jax.model.transformer import GLM
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example, read
from glm_jax.tasks.task import AnyTask, Task, find, from_settings
from glm_jax.tokenizers.base import Tokenizer
from glm_jax.training import setup
from glm_jax.training.workdir import BEST_OF_TASKS, parameters_of
from glm_jax.tuning.dataset import make_dataset, to_batch
from glm_jax.tuning.losses import task_objective

LOSSES = ("cross_entropy", "hinge", "generative", "mix", "adapet")
HEADS = ("cloze", "classifier")


class FinetuningTask:
    """The subject of a fine-tuning run; the attributes of `text.Text`."""

    best = BEST_OF_TASKS
    rows = staticmethod(to_batch)

    def __init__(
        self, config: ConfigDict, tokenizer: Tokenizer, params: Any = None, tasks: Sequence[AnyTask] | None = None
    ):
        """Reads and encodes the training examples of `tasks`, or of those that the config names.

        Raises TaskError for a task, split or example that cannot be used, ValueError for one longer than the model.
        """
        self._config, self.tokenizer, self._start = config, tokenizer, params
        self.tasks = tasks_of(config) if tasks is None else list(tasks)
        self._model = GLM(model_config(config.model, tokenizer.vocab_size))
        parts = [
            make_dataset(
                task, few(read(task.source, config.train_split), config), tokenizer, self._model, config.head,
                config.packed_length,
            )
            for task in self.tasks
        ]  # fmt: skip
        sizes = tuple(map(max, zip(*(part.sizes for part in parts), strict=True)))
        segments = any(part.segments for part in parts)
        for part in parts:
            part.set_shape(sizes, segments)
        self.train_rows = parts[0] if len(parts) == 1 else Mixture(parts, config.weights or [1.0] * len(parts))

    def build(self, schedule: setup.StepSchedule, mesh: Any, rules: Any) -> setup.TrainingSetup:
        """The run's functions."""
        config, kinds = self._config, [isinstance(task, Task) for task in self.tasks]
        smoothing = config.label_smoothing
        if smoothing is None:
            smoothing = max((getattr(task, "label_smoothing", 0.0) for task in self.tasks), default=0.0)
        objective = task_objective(
            self._model, loss=config.loss, label_smoothing=smoothing, head=config.head, choices=any(kinds),
            generation=not all(kinds),
            length_penalty=max((task.length_penalty for task in self.tasks if isinstance(task, Task)), default=0.0),
        )  # fmt: skip
        parameters = parameters_of(config.to_dict())
        return setup.make_setup_for(self._model, objective, config, schedule, mesh, rules, parameters)

    def fingerprint(self) -> list:
        """What must be the same on every host."""
        return [self.tokenizer.fingerprint(), self.train_rows.fingerprint()]

    @staticmethod
    def flops_per_token(run: setup.TrainingSetup, rows: Any) -> None:
        """Not counted: rows of tasks have no raw tokens."""
        return None

    def init_params(self, run: setup.TrainingSetup, fresh: Any) -> Any:
        """The checkpoint's parameters in the place of the fresh ones; a head that it does not have stays fresh."""
        if self._start is None:
            raise ValueError("a run that starts anew needs the parameters of its checkpoint")
        shapes = [{name: jax.tree.map(lambda a: a.shape, tree[name]) for name in tree} for tree in (self._start, fresh)]
        for name, shape in shapes[0].items():
            if shape != shapes[1].get(name):
                raise ValueError(
                    f"init_from {self._config.init_from}: {name} is {shape} there, but {shapes[1].get(name)} in this "
                    "run; leave the sizes in config.model None"
                )
        placed = {name: run.shardings.params[name] for name in self._start}
        return {**fresh, **jax.tree.map(jax.device_put, dict(self._start), placed)}

    def evaluate(self, run: setup.TrainingSetup, params: Any, process: int = 0, processes: int = 1) -> dict[str, float]:
        """`validation_score`, the tasks' first numbers averaged by their examples, and all numbers by task."""
        config = self._config
        options = Options(
            split=config.validation_split, limit=config.eval_examples, batch_size=config.eval_batch_size,
            head=config.head,
        )  # fmt: skip
        results = evaluate_tasks(run.model, params, self.tokenizer, self.tasks, options)
        count = sum(result.count for result in results)
        found = {BEST_OF_TASKS[0]: sum(next(iter(r.numbers.values())) * r.count for r in results) / count}
        return found | {f"validation_{r.task}_{name}": value for r in results for name, value in r.numbers.items()}

    @staticmethod
    def baselines(run: setup.TrainingSetup) -> dict[str, float]:
        """There are none."""
        return {}

    @staticmethod
    def show(run: setup.TrainingSetup, params: Any) -> str:
        """Predictions are written by the evaluation instead."""
        return ""

    @staticmethod
    def describe(found: Mapping[str, float], ngrams: Mapping[str, float]) -> str:
        """All numbers of the validation."""
        return ", ".join(f"{name.removeprefix('validation_')} {value:.2f}" for name, value in found.items())


@dataclasses.dataclass(frozen=True)
class FromCheckpoint:
    """What `trainer.train` takes as its subject: Tasks on the tokenizer, and from the parameters, of a checkpoint.

    Attributes:
      tokenizer: the checkpoint's.
      params: where the run starts; None for one that goes on from its own checkpoint.
    """

    tokenizer: Tokenizer
    params: Any = None
    best = BEST_OF_TASKS

    @staticmethod
    def check(config: ConfigDict) -> tuple[Any, Any]:
        """See `check`."""
        return check(config)

    def check_init_from(self, path: str | None) -> None:
        """The checkpoint is open already."""

    def __call__(self, config: ConfigDict) -> FinetuningTask:
        """The tasks of the config."""
        return FinetuningTask(config, self.tokenizer, self.params)


def check(config: ConfigDict) -> tuple[Any, Any]:
    """The run's mesh and sharding rules. Raises ValueError for what is wrong with a config before data is touched."""
    check_keys(config)
    return setup.check_mesh(config)


def check_keys(config: ConfigDict) -> None:
    """Raises ValueError for keys of fine-tuning that contradict each other."""
    for name, value, known in (("loss", config.loss, LOSSES), ("head", config.head, HEADS)):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")
    if not config.tasks:
        raise ValueError("tasks is empty: name what to learn, such as ('boolq:4',)")
    if config.weights is not None and len(config.weights) != len(config.tasks):
        raise ValueError(f"{len(config.weights)} weights for {len(config.tasks)} tasks: give one each, or None")
    if config.head == "classifier" and len(config.tasks) > 1:
        raise ValueError("a classifier has the classes of one task: give one task, or use the head 'cloze'")
    if config.head == "classifier" and config.loss != "cross_entropy":
        raise ValueError(f"loss {config.loss!r} is of candidates; a classifier takes 'cross_entropy'")
    if config.few_shot is not None and config.few_shot < 1:
        raise ValueError(f"few_shot {config.few_shot}: give at least 1 example, or None for all")
    if not config.eval_batch_size >= 1:
        raise ValueError(f"eval_batch_size {config.eval_batch_size} must be at least 1")


def tasks_of(config: ConfigDict) -> list[AnyTask]:
    """The tasks of a config. Raises TaskError."""
    tasks = []
    for task in config.tasks:
        given = isinstance(task, Mapping | ConfigDict)
        found = from_settings(dict(task)) if given else find(task, config.data.data_dir)
        if config.length_penalty is not None and isinstance(found, Task):
            found = dataclasses.replace(found, length_penalty=config.length_penalty)
        tasks.append(found)
    penalties = {task.length_penalty for task in tasks if isinstance(task, Task)}
    if len(penalties) > 1:
        raise TaskError(
            f"the tasks have length penalties {', '.join(map(str, sorted(penalties)))}, but are trained with one: set "
            "length_penalty"
        )
    return tasks


def few(examples: list[Example], config: ConfigDict) -> list[Example]:
    """`few_shot` examples that `few_shot_seed` chooses, in their order; all where it is None.

    Raises ValueError where there are fewer.
    """
    if config.few_shot is None:
        return examples
    if config.few_shot > len(examples):
        raise ValueError(f"few_shot {config.few_shot} of {len(examples)} examples: lower it, or set it to None")
    chosen = random.Random(config.few_shot_seed).sample(range(len(examples)), config.few_shot)
    return [examples[i] for i in sorted(chosen)]


def evaluate_tasks(
    model: GLM, params: Any, tokenizer: Tokenizer, tasks: Sequence[AnyTask], options: Options
) -> list[Result]:
    """The results of all tasks; on many processes each scores its share of the examples, and all get all results."""
    own, mesh = sharding.local_replica(params)
    share = Share(jax.process_index(), jax.process_count())
    options = dataclasses.replace(options, share=share)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        return [evaluate_task(model, own, tokenizer, task, options) for task in tasks]
