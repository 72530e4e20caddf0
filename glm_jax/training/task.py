"""What a run trains on, as the trainer sees it."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from jax.sharding import Mesh
from ml_collections import ConfigDict

from glm_jax.distributed import sharding
from glm_jax.tokenizers.base import Tokenizer
from glm_jax.training.setup import StepSchedule, TrainingSetup


@runtime_checkable
class TrainingTask(Protocol):
    """Rows, objective, starting point and evaluation of a run.

    `pretraining.PretrainingTask` learns from text, `tuning.task.FinetuningTask` from labelled examples. The trainer
    calls the methods in the order of this class, on every process.

    Attributes:
      config: of the run.
      best: (metric, "min" or "max"): what makes a checkpoint the best one; a key of what `evaluate` returns.
      tokenizer: copied into the run folder. Known after `prepare`.
      train_rows: for `data.train_iterator`. Known after `prepare`.
      base_fingerprint: of the parameters that a tuning method leaves as they are, which checkpoints do not hold; None
        where they hold everything.
    """

    config: ConfigDict
    best: tuple[str, str]
    tokenizer: Tokenizer
    train_rows: Any
    base_fingerprint: str | None = None

    def check(self) -> tuple[Mesh, sharding.Rules]:
        """The mesh and the sharding rules. Raises ValueError for what is wrong with the config; reads no data."""

    def check_start(self) -> None:
        """Raises ValueError when the parameters to start from are missing. Called for a run without a checkpoint."""

    def prepare(self) -> None:
        """Opens the data, which may take hours the first time. Process 0 calls it before the others do."""

    def fingerprint(self) -> list[Any]:
        """JSON that must be the same on every process."""

    def make_setup(self, schedule: StepSchedule, mesh: Mesh, rules: sharding.Rules) -> TrainingSetup:
        """The functions of the run; nothing is compiled yet."""

    def start_params(self, setup: TrainingSetup, fresh: Any) -> Any:
        """The parameters of a run's first step, placed like the `fresh` ones, which it may return.

        Called once, for a run without a checkpoint; the task keeps no other parameters afterwards.
        """

    def frozen_params(self, setup: TrainingSetup) -> Any:
        """The parameters that do not train, placed as `setup.shardings.frozen` says; None where all train.

        Called once, at a fresh start after `start_params`, and at a resume.
        """
        return None

    def rows(self, batch: Mapping[str, Any]) -> Any:
        """A batch of `train_rows` as the training step takes it."""

    def flops_per_token(self, setup: TrainingSetup, rows: Any) -> float | None:
        """Useful floating-point operations of a raw token in this batch; None where they are not counted."""

    def baselines(self, setup: TrainingSetup) -> dict[str, float]:
        """Numbers to compare the evaluation with; process 0 alone asks for them, once."""

    def evaluate(self, setup: TrainingSetup, params: Any, process: int = 0, processes: int = 1) -> dict[str, float]:
        """The validation; `process` of `processes` is this one's share of a batch."""

    def describe(self, metrics: Mapping[str, float], baselines: Mapping[str, float]) -> str:
        """A line about an evaluation, for people."""

    def sample(self, setup: TrainingSetup, params: Any) -> str:
        """What the model writes, as Markdown for samples.md."""
