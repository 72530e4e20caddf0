"""What pretraining learns from: corpora, whose text is corrupted inside the compiled step.

`trainer.train` asks its subject for rows, functions, and what to tell people. Fine-tuning has another subject:
glm_jax/tuning/task.py.
"""

import functools
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from glm_jax import data
from glm_jax.corruption.config import OBJECTIVES
from glm_jax.distributed import sharding
from glm_jax.training import setup, validation
from glm_jax.training.flops import useful_flops
from glm_jax.training.samples import fill_held_out
from glm_jax.training.train_step import TokenRows
from glm_jax.training.workdir import BEST, RunFolder, restore_model

logger = logging.getLogger(__name__)


class PretrainingTask:
    """The subject of a pretraining run.

    Attributes:
      tokenizer: copied into the run folder.
      train_rows: for `data.train_iterator`.
      best: (metric, mode) of the checkpoint that is kept.
    """

    best = BEST
    check = staticmethod(setup.check)
    rows = staticmethod(lambda batch: TokenRows(**batch))

    def __init__(self, config: ConfigDict):
        """Opens, and where necessary prepares, the text. Raises DataError, also where nothing is held out."""
        self._config, self._dataset = config, data.load(config.data.to_dict(), held_out=True)
        self.tokenizer, self.train_rows = self._dataset.tokenizer, self._dataset.train_rows
        for name, facts in self._dataset.statistics.items():
            train_part = facts["train"]
            logger.info(
                "corpus %s: %.0f %% of the rows; %d documents, %d tokens, %.2f bytes a token; held out: %d tokens",
                name, 100 * facts["share"], train_part["documents"], train_part["tokens"],
                train_part["bytes_per_token"], facts.get("validation", {"tokens": 0})["tokens"],
            )  # fmt: skip
        eval_batch = config.batch_size // config.grad_accumulation_steps
        self._held_out = functools.partial(
            validation.held_out_rows, self._dataset.validation_rows, eval_batch, config.eval_examples
        )

    @staticmethod
    def check_init_from(path: str | None) -> None:
        """Before the text is tokenised, which may take hours. Raises ValueError."""
        if path is not None and not RunFolder(pathlib.Path(path)).config.exists():
            raise ValueError(
                f"init_from {path} is no run folder (it has no config.json): train that run first, or set "
                "init_from=None to start from new parameters"
            )

    def build(self, schedule: setup.StepSchedule, mesh, rules) -> setup.TrainingSetup:
        """The run's functions."""
        config, tokenizer = self._config, self.tokenizer
        run = setup.make_setup(
            config, schedule, mesh, rules,
            vocab_size=tokenizer.vocab_size, special=tokenizer.special, sentence_ends=tokenizer.sentence_ends(),
        )  # fmt: skip
        length = config.data.sequence_length
        for number, slot in enumerate(slots := run.corruption.slots()):
            capacity = slot.capacity(length)
            logger.info(
                "corruption%s: T = %d, room for %d blanks beside a full row; at most %d blanks and %d targets an "
                "example; blank infilling wants more with p = %.1e",
                f" of slot {number + 1}" if len(slots) > 1 else "", slot.sequence_length(length),
                slot.row_spans(length), capacity.max_spans, capacity.max_targets, capacity.overflow_prob,
            )  # fmt: skip
        return run

    def fingerprint(self) -> list:
        """What must be the same on every host."""
        return [self.tokenizer.fingerprint(), self.train_rows.fingerprint(), len(self._dataset.validation_rows)]

    @staticmethod
    def flops_per_token(run: setup.TrainingSetup, rows: TokenRows) -> float:
        """Useful operations of a raw token in this batch. Every host calls it: the batch is spread over all."""
        gather = jax.jit(lambda rows: (run.corrupt(rows), rows.lengths), out_shardings=sharding.replicated(run.mesh))
        batch, lengths = jax.device_get(gather(rows))
        return useful_flops(run.model.config, batch) / max(float(lengths.sum()), 1.0)

    def init_params(self, run: setup.TrainingSetup, fresh: Any) -> Any:
        """The parameters of the run `init_from`, placed like the fresh ones. Raises ValueError for other shapes."""
        path = self._config.init_from
        model, restored = restore_model(RunFolder(pathlib.Path(path)))
        shapes = [jax.tree.map(lambda a: a.shape, params) for params in (restored.state, fresh)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"init_from {path}: its model has other shapes ({model}); use the same model")
        return jax.tree.map(jax.device_put, restored.state, run.shardings.params)

    def evaluate(self, run: setup.TrainingSetup, params: Any, process: int = 0, processes: int = 1) -> dict[str, float]:
        """See `validation.evaluate`."""
        return validation.evaluate(run, params, self._held_out(process=process, processes=processes))

    def baselines(self, run: setup.TrainingSetup) -> dict[str, float]:
        """See `validation.baselines`."""
        return validation.baselines(run, self._dataset.ngram_baseline(), self._held_out(), self.tokenizer.special.cls)

    def show(self, run: setup.TrainingSetup, params: Any) -> str:
        """Blanks of held-out text, filled."""
        held_out = self._dataset.validation_rows
        return fill_held_out(run.model, params, self.tokenizer, held_out, seed=self._config.seed)

    @staticmethod
    def describe(found: Mapping[str, float], ngrams: Mapping[str, float]) -> str:
        """Validation loss, overall and by objective, each beside the baselines on the same targets."""
        parts = []
        for objective in ("", *(f"{name}_" for name in OBJECTIVES)):
            if f"validation_{objective}loss" in found:
                names = [n for n in validation.BASELINES if objective + n in ngrams]
                others = [f"{n} {ngrams[objective + n]:.3f}" for n in names]
                label = objective.rstrip("_").replace("_", " ") or "validation loss, nats per target"
                parts.append(f"{label} {found[f'validation_{objective}loss']:.3f} ({', '.join(others)})")
        return "; ".join(parts)
