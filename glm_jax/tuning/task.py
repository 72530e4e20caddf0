"""Fine-tuning: labelled examples of tasks, on the tokenizer and from the parameters of a checkpoint."""

import contextlib
import dataclasses
import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from glm_jax.config import model_config
from glm_jax.data.packing import Mixture
from glm_jax.distributed import sharding
from glm_jax.evaluation.results import HEADS, Options, Result, Share
from glm_jax.evaluation.run import evaluate_task
from glm_jax.interop.adapter import fingerprint
from glm_jax.methods import ClassifierHead, FirstLayers, Full, Prompt, PromptSpell, PTuningV2, method_of
from glm_jax.model.classifier_head import POOLS
from glm_jax.model.transformer import GLM
from glm_jax.tasks.batch import TaskBatch
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example, read, spread
from glm_jax.tasks.task import AnyTask, Task, find, from_settings
from glm_jax.tokenizers.base import Tokenizer
from glm_jax.training.checksum import leaf_name
from glm_jax.training.setup import StepSchedule, TrainingSetup, check_mesh, make_setup_for
from glm_jax.training.task import TrainingTask
from glm_jax.training.train_step import TrainState
from glm_jax.training.workdir import BEST, fresh_params
from glm_jax.tuning.dataset import make_dataset, to_batch
from glm_jax.tuning.losses import task_objective

logger = logging.getLogger(__name__)

_LOW_RATE = 1e-4  # below it, methods that train few parameters hardly move
LOSSES = ("cross_entropy", "hinge", "generative", "mix", "adapet")


class FinetuningTask(TrainingTask):
    """Learns `tasks`, or those that the config names.

    Args:
      config: of fine-tuning, complete with the checkpoint's model (see `tuning.run.open_checkpoint`).
      tokenizer: the checkpoint's.
      params: where the run starts; None for one that resumes from a checkpoint of its own. The task lets go of them
        when the run has started.
      tasks: instead of the config's.
    """

    best = BEST["finetune"]

    def __init__(
        self, config: ConfigDict, tokenizer: Tokenizer, params: Any = None, tasks: Sequence[AnyTask] | None = None
    ):
        self.config, self.tokenizer, self._params, self._given = config, tokenizer, params, tasks
        self.method = method_of(config.to_dict())
        if params is not None and not isinstance(self.method, Full):
            self.base_fingerprint = fingerprint(params)

    def check(self) -> tuple[Mesh, sharding.Rules]:
        """See `check_keys` and `setup.check_mesh`."""
        check_keys(self.config)
        self.method.check(model_config(self.config.model, 1))
        return check_mesh(self.config, prefix=isinstance(self.method, PTuningV2 | Prompt))

    def check_start(self) -> None:
        """Raises ValueError for a run that is not started with parameters."""
        if self._params is None:
            raise ValueError(f"a new run needs the parameters of its checkpoint {self.config.init_from}")

    def prepare(self) -> None:
        """Reads and encodes the training examples.

        Raises TaskError for a task, split or example that cannot be used, ValueError for one longer than the model.
        """
        config = self.config
        if not isinstance(self.method, Full | FirstLayers) and config.schedule.peak_lr < _LOW_RATE:
            logger.warning(
                "schedule.peak_lr %g is a rate for training all parameters: method %r hardly moves with it; it "
                "usually takes 1e-3 to 3e-2", config.schedule.peak_lr, config.method,
            )  # fmt: skip
        self.tasks = tasks_of(config) if self._given is None else list(self._given)
        self._validated = validation_tasks(self.tasks, config)
        self.model = self.method.model(GLM(model_config(config.model, self.tokenizer.vocab_size)))
        prompt_tokens = self.method.length if isinstance(self.method, PromptSpell) else 0
        parts = [
            make_dataset(
                task, few(read(task.source, config.train_split), config), self.tokenizer, self.model, config.head,
                config.packed_length, config.pool, prompt_tokens,
            )
            for task in self.tasks
        ]  # fmt: skip
        sizes = tuple(map(max, zip(*(part.sizes for part in parts), strict=True)))
        segments = any(part.segments for part in parts)
        for part in parts:
            part.set_shape(sizes, segments)
        self.train_rows = parts[0] if len(parts) == 1 else Mixture(parts, config.weights or [1.0] * len(parts))

    def fingerprint(self) -> list[Any]:
        """Of tokenizer and rows."""
        return [self.tokenizer.fingerprint(), self.train_rows.fingerprint()]

    def make_setup(self, schedule: StepSchedule, mesh: Mesh, rules: sharding.Rules) -> TrainingSetup:
        """See `setup.make_setup_for`."""
        config, kinds = self.config, [isinstance(task, Task) for task in self.tasks]
        smoothing = config.label_smoothing
        if smoothing is None:
            smoothing = max((getattr(task, "label_smoothing", 0.0) for task in self.tasks), default=0.0)
        objective = task_objective(
            self.model, loss=config.loss, label_smoothing=smoothing, head=config.head, pool=config.pool,
            choices=any(kinds),
            generation=not all(kinds),
            length_penalty=max((task.length_penalty for task in self.tasks if isinstance(task, Task)), default=0.0),
        )  # fmt: skip
        parameters = fresh_params(config.to_dict())
        return make_setup_for(
            self.model, objective, config, schedule, mesh, rules, parameters,
            method=None if isinstance(self.method, Full) else self.method,
            frozen_dtype=config.frozen_dtype, share_programs=True,
        )  # fmt: skip

    def start_params(self, setup: TrainingSetup, fresh: Any) -> Any:
        """The checkpoint's parameters in the place of the fresh ones; what it does not have stays fresh."""
        if isinstance(self.method, Full):
            params, self._params = self._params, None
            return self._placed(params, fresh, setup.shardings.params)
        trained, _ = self.method.split(self._params)
        start = self._placed(trained, fresh, setup.shardings.params)
        if isinstance(self.method, PTuningV2 | Prompt):
            tokens = self._tokens_of_examples(self.method.length)
            start = self.method.start_from(start, setup.model, self._params, tokens)
        elif isinstance(self.method, PromptSpell):
            start = self.method.start_from(start, self._params, self._verbalizer_tokens(), self.config.seed)
        return jax.tree.map(jax.device_put, start, setup.shardings.params)

    def fresh_state(self, setup: TrainingSetup) -> TrainState:
        """A state with random parameters, the frozen ones too, for measuring without a checkpoint."""
        state = setup.init(jax.random.key(0))
        if setup.join is None:
            return setup.completed(state)
        parameters = fresh_params(self.config.to_dict())

        def frozen(key):
            params = self.method.split(sharding.unbox(parameters(setup.model, key)))[1]
            return jax.tree.map(lambda leaf: leaf.astype(self.config.frozen_dtype), params)

        return setup.completed(state, jax.jit(frozen, out_shardings=setup.shardings.frozen)(jax.random.key(0)))

    def frozen_params(self, setup: TrainingSetup) -> Any:
        """The checkpoint's parameters that do not train, in the config's `frozen_dtype`."""
        if isinstance(self.method, Full):
            return None
        params, self._params = self._params, None
        if params is None:
            raise ValueError(f"the run needs the parameters of its checkpoint {self.config.init_from}, also to resume")
        _, frozen = self.method.split(self.method.add(params, setup.model.config, jax.random.key(0)))
        dtype = self.config.frozen_dtype
        place = lambda leaf, where: jax.device_put(leaf.astype(dtype), where)  # noqa: E731
        return jax.tree.map(place, frozen, setup.shardings.frozen)

    def _placed(self, params, fresh, shardings):
        """`params` where they have the shapes of `fresh`, on `shardings`; the rest of `fresh`."""
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            other: Any = fresh
            for key in path:
                other = other.get(key.key) if isinstance(other, Mapping) else None
            if (expected := getattr(other, "shape", None)) != leaf.shape:
                raise ValueError(
                    f"init_from {self.config.init_from}: {leaf_name(path)} is {leaf.shape} there, but {expected} in "
                    "this run; leave the sizes in config.model None"
                )
        return _place(params, fresh, shardings)

    def _tokens_of_examples(self, count):
        """The first tokens of the training rows, without special ones."""
        ids: list[int] = []
        special = set(dataclasses.asdict(self.tokenizer.special).values())
        for number in range(len(self.train_rows)):
            row = self.train_rows[number]
            ids += [int(i) for i in row["tokens"][: int(row["prefix_lengths"])] if int(i) not in special]
            if len(ids) >= count:
                break
        return ids[:count] or [self.tokenizer.special.cls]

    def _verbalizer_tokens(self):
        """The tokens of the tasks' verbalizers."""
        tasks = [task for task in self.tasks if isinstance(task, Task) and task.template.verbalizer]
        texts = [text for task in tasks for text in task.template.verbalizer.values()]
        return [int(i) for text in texts for i in self.tokenizer.encode_continuation(text)]

    def rows(self, batch: Mapping[str, Any]) -> TaskBatch:
        """Encoded examples."""
        return to_batch(batch)

    def flops_per_token(self, setup: TrainingSetup, rows: Any) -> None:
        """Not counted: rows of tasks have no raw tokens."""
        return None

    def baselines(self, setup: TrainingSetup) -> dict[str, float]:
        """There are none."""
        return {}

    def evaluate(self, setup: TrainingSetup, params: Any, process: int = 0, processes: int = 1) -> dict[str, float]:
        """`validation_score`, the tasks' first numbers averaged by their examples, and all numbers by task."""
        config = self.config
        options = Options(
            split=config.validation_split, batch_size=config.eval_batch_size, head=config.head, pool=config.pool
        )
        results = evaluate_tasks(setup.model, params, self.tokenizer, self._validated, options)
        count = sum(result.count for result in results)
        score = sum(next(iter(r.numbers.values())) * r.count for r in results) / count
        return {
            self.best[0]: score,
            **{f"validation_{r.task}_{name}": value for r in results for name, value in r.numbers.items()},
        }

    def describe(self, metrics: Mapping[str, float], baselines: Mapping[str, float]) -> str:
        """All numbers of the validation."""
        return ", ".join(f"{name.removeprefix('validation_')} {value:.2f}" for name, value in metrics.items())

    def sample(self, setup: TrainingSetup, params: Any) -> str:
        """Nothing: predictions are written by the evaluation."""
        return ""


def _place(params, fresh, shardings):
    if not isinstance(fresh, Mapping):
        return jax.device_put(params, shardings)
    return {
        name: _place(params[name], branch, shardings[name]) if name in params else branch
        for name, branch in fresh.items()
    }


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
    _check_method(config)
    if config.few_shot is not None and config.few_shot < 1:
        raise ValueError(f"few_shot {config.few_shot}: give at least 1 example, or None for all")
    if not config.eval_batch_size >= 1:
        raise ValueError(f"eval_batch_size {config.eval_batch_size} must be at least 1")


def _check_method(config):
    method = method_of(config.to_dict())
    if config.pool not in POOLS:
        raise ValueError(f"unknown pool {config.pool!r}; known: {', '.join(POOLS)}")
    if config.frozen_dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"unknown frozen_dtype {config.frozen_dtype!r}; known: float32, bfloat16, float16")
    if isinstance(method, ClassifierHead) and config.head != "classifier":
        raise ValueError("method 'classifier' trains a head alone: set head = 'classifier', or choose another method")
    if isinstance(method, PromptSpell) and config.packed_length is not None:
        raise ValueError("method 'prompt_spell' needs a row for each example: set packed_length to None")


def tasks_of(config: ConfigDict) -> list[AnyTask]:
    """The tasks of a config. Raises TaskError."""
    tasks = []
    for task in config.tasks:
        is_settings = isinstance(task, Mapping | ConfigDict)
        opened = from_settings(dict(task)) if is_settings else find(task, config.data.data_dir)
        if config.length_penalty is not None and isinstance(opened, Task):
            opened = dataclasses.replace(opened, length_penalty=config.length_penalty)
        tasks.append(opened)
    if config.method == PromptSpell.name and (others := [t.name for t in tasks if not isinstance(t, Task)]):
        raise TaskError(
            f"method 'prompt_spell' puts its vectors into a template with a verbalizer or candidates, which "
            f"{others[0]} does not have: choose 'prompt' or 'p_tuning_v2'"
        )
    penalties = {task.length_penalty for task in tasks if isinstance(task, Task)}
    if len(penalties) > 1:
        raise TaskError(
            f"the tasks have length penalties {', '.join(map(str, sorted(penalties)))}, but are trained with one: set "
            "length_penalty"
        )
    return tasks


def validation_tasks(tasks: Sequence[AnyTask], config: ConfigDict) -> list[AnyTask]:
    """The tasks with the examples of a validation: `eval_examples` of each, evenly spread; None: all."""
    if config.eval_examples is None:
        return list(tasks)
    return [dataclasses.replace(task, source=spread(task.source, config.eval_examples)) for task in tasks]


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
    replica, mesh = sharding.local_replica(params)
    share = Share(jax.process_index(), jax.process_count())
    options = dataclasses.replace(options, share=share)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        return [evaluate_task(model, replica, tokenizer, task, options) for task in tasks]
