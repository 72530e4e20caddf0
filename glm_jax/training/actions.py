"""What a run does beside its training steps: logging, evaluation, samples and checkpoints."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from glm_jax.training import host_memory
from glm_jax.training.checkpoint import Checkpointer
from glm_jax.training.durations import due
from glm_jax.training.early_stopping import EarlyStopping
from glm_jax.training.metric_writer import MetricWriter
from glm_jax.training.metrics import StepMetrics
from glm_jax.training.run_lock import RunLock
from glm_jax.training.setup import StepSchedule, TrainingSetup
from glm_jax.training.task import TrainingTask
from glm_jax.training.train_step import TrainState


@dataclasses.dataclass(frozen=True)
class PeriodicAction:
    """Runs every `every` steps and after the last one; never where `every` is 0."""

    every: int
    run: Callable[[int, TrainState], None]

    def due(self, step: int, total: int) -> bool:
        """Whether it is time after `step` of `total` steps."""
        return due(step, self.every, total)


class Actions:
    """The actions of a run, called with (step, state) on every process.

    Attributes:
      data_position: of the batch after the one that `state` has learned; the trainer sets it.
    """

    def __init__(
        self, task: TrainingTask, setup: TrainingSetup, schedule: StepSchedule, shard: tuple[int, int], *,
        checkpoints: Checkpointer, early_stopping: EarlyStopping, metrics: StepMetrics, writer: MetricWriter | None,
        lock: RunLock | None, on_log: Callable[[int, Mapping[str, Any]], None] | None,
    ):  # fmt: skip
        """`writer` and `lock` are of process 0; `shard` is what `sharding.process_shard` returns."""
        self._task, self._setup, self._schedule, self._shard = task, setup, schedule, shard
        self._checkpoints, self._early_stopping, self._metrics = checkpoints, early_stopping, metrics
        self._writer, self._lock, self._on_log = writer, lock, on_log
        self._validation: tuple[int, dict[str, float]] = (-1, {})
        self._saved = -1
        self.data_position: dict[str, Any] = {}

    def periodic(self) -> list[PeriodicAction]:
        """All of them, in the order in which they run after a step."""
        return [
            PeriodicAction(self._schedule.log, self.log),
            PeriodicAction(self._schedule.evaluate, self.evaluate),
            PeriodicAction(self._schedule.sample, self.sample),
            PeriodicAction(self._schedule.checkpoint, self.save),
        ]

    def log(self, step: int, state: TrainState) -> None:
        """Writes the metrics since the last log line."""
        del state
        values = self._metrics.close()
        self._write(step, values)
        if self._writer:
            self._writer.progress(step, values)

    def evaluate(self, step: int, state: TrainState) -> None:
        """Validates; early stopping and the `save` of this step use the result."""
        with self._metrics.paused():
            values = self._task.evaluate(self._setup, self._setup.params_of(state), *self._shard)
            self._validation = (step, values)
            self._early_stopping.update(values)
            self._write(step, values)
            if self._writer:
                self._writer.say(f"step {step}: {self._task.describe(values, self.baselines)}")
            host_memory.set_fragments_aside()  # of what was compiled

    def sample(self, step: int, state: TrainState) -> None:
        """Shows what the model writes, and adds it to samples.md."""
        with self._metrics.paused():
            text = self._task.sample(self._setup, self._setup.params_of(state))
            if self._writer and text:
                self._writer.sample(step, text)
            host_memory.set_fragments_aside()

    def save(self, step: int, state: TrainState) -> None:
        """Starts writing a checkpoint, unless that of this step is there. Raises LockError in another's folder."""
        if step == self._saved:
            return
        with self._metrics.paused():
            if self._lock:
                self._lock.check()
            position = self.data_position | self._early_stopping.get_state()
            position["tokenizer"] = self._task.tokenizer.fingerprint()
            if self._task.base_fingerprint is not None:
                position["base"] = self._task.base_fingerprint
            self._checkpoints.save(step, state.saved(), position, self.validation_of(step))
            self._saved = step

    def validation_of(self, step: int) -> dict[str, float] | None:
        """The evaluation of this step; None without one."""
        return self._validation[1] if self._validation[0] == step else None

    @functools.cached_property
    def baselines(self) -> dict[str, float]:
        """The task's baselines, on process 0. Not computed before the first step, which should come soon."""
        values = self._task.baselines(self._setup) if self._writer and self._schedule.evaluate else {}
        if values:
            numbers = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
            self._writer.say("baselines on the held-out targets, nats per target: " + numbers)
        return values

    def _write(self, step, values):
        if self._writer:
            self._writer.metrics(step, values)
            if self._on_log:
                self._on_log(step, values)
