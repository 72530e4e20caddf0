"""Pretraining: corpora, whose text is corrupted inside the compiled step."""

import functools
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from glm_jax import data
from glm_jax.corruption.config import OBJECTIVES
from glm_jax.distributed import sharding
from glm_jax.training import setup as setup_lib
from glm_jax.training import validation
from glm_jax.training.flops import useful_flops
from glm_jax.training.samples import fill_held_out
from glm_jax.training.setup import PretrainingSetup, StepSchedule
from glm_jax.training.task import TrainingTask
from glm_jax.training.train_step import TokenRows
from glm_jax.training.workdir import BEST, RunFolder, restore_model

logger = logging.getLogger(__name__)


class PretrainingTask(TrainingTask):
    """Learns to fill blanks in the text of `config.data`."""

    best = BEST["pretrain"]

    def __init__(self, config: ConfigDict):
        self.config = config

    def check(self) -> tuple[Mesh, sharding.Rules]:
        """See `setup.check`."""
        return setup_lib.check(self.config)

    def check_start(self) -> None:
        """Raises ValueError when `init_from` is no run: before the text is tokenised, which may take hours."""
        path = self.config.init_from
        if path and not RunFolder(pathlib.Path(path)).config.exists():
            raise ValueError(
                f"init_from {path} is no run folder (it has no config.json): train that run first, or set "
                "init_from=None to start from new parameters"
            )

    def prepare(self) -> None:
        """Opens the text. Raises DataError, also where nothing is held out."""
        self._dataset = data.load(self.config.data.to_dict(), held_out=True)
        self.tokenizer, self.train_rows = self._dataset.tokenizer, self._dataset.train_rows
        for name, facts in self._dataset.statistics.items():
            train_part = facts["train"]
            logger.info(
                "corpus %s: %.0f %% of the rows; %d documents, %d tokens, %.2f bytes a token; held out: %d tokens",
                name, 100 * facts["share"], train_part["documents"], train_part["tokens"],
                train_part["bytes_per_token"], facts.get("validation", {"tokens": 0})["tokens"],
            )  # fmt: skip
        eval_batch = self.config.batch_size // self.config.grad_accumulation_steps
        self._held_out = functools.partial(
            validation.held_out_rows, self._dataset.validation_rows, eval_batch, self.config.eval_examples
        )

    def fingerprint(self) -> list[Any]:
        """Of tokenizer and rows."""
        return [self.tokenizer.fingerprint(), self.train_rows.fingerprint(), len(self._dataset.validation_rows)]

    def make_setup(self, schedule: StepSchedule, mesh: Mesh, rules: sharding.Rules) -> PretrainingSetup:
        """See `setup.make_setup`; logs the sizes that follow from the corruption."""
        setup = setup_lib.make_setup(
            self.config, schedule, mesh, rules, vocab_size=self.tokenizer.vocab_size, special=self.tokenizer.special,
            sentence_ends=self.tokenizer.sentence_ends(),
        )  # fmt: skip
        length = self.config.data.sequence_length
        for number, slot in enumerate(slots := setup.corruption.slots()):
            capacity = slot.capacity(length)
            logger.info(
                "corruption%s: T = %d, room for %d blanks beside a full row; at most %d blanks and %d targets an "
                "example; blank infilling wants more with p = %.1e",
                f" of slot {number + 1}" if len(slots) > 1 else "", slot.sequence_length(length),
                slot.row_spans(length), capacity.max_spans, capacity.max_targets, capacity.overflow_prob,
            )  # fmt: skip
        return setup

    def start_params(self, setup: PretrainingSetup, fresh: Any) -> Any:
        """Those of the run `init_from`, or the fresh ones. Raises ValueError for other shapes."""
        path = self.config.init_from
        if not path:
            return fresh
        model, restored = restore_model(RunFolder(pathlib.Path(path)))
        shapes = [jax.tree.map(lambda a: a.shape, params) for params in (restored.state, fresh)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"init_from {path}: its model has other shapes ({model}); use the same model")
        return jax.tree.map(jax.device_put, restored.state, setup.shardings.params)

    def rows(self, batch: Mapping[str, Any]) -> TokenRows:
        """Raw tokens."""
        return TokenRows(**batch)

    def flops_per_token(self, setup: PretrainingSetup, rows: TokenRows) -> float:
        """See `flops.useful_flops`. Every process calls it: the batch is spread over all."""
        gather = jax.jit(
            lambda rows: (setup.corrupt(rows), rows.lengths), out_shardings=sharding.replicated(setup.mesh)
        )
        batch, lengths = jax.device_get(gather(rows))
        return useful_flops(setup.model.config, batch) / max(float(lengths.sum()), 1.0)

    def baselines(self, setup: PretrainingSetup) -> dict[str, float]:
        """See `validation.baselines`."""
        return validation.baselines(setup, self._dataset.ngram_baseline(), self._held_out(), self.tokenizer.special.cls)

    def evaluate(self, setup: PretrainingSetup, params: Any, process: int = 0, processes: int = 1) -> dict[str, float]:
        """See `validation.evaluate`."""
        return validation.evaluate(setup, params, self._held_out(process=process, processes=processes))

    def describe(self, metrics: Mapping[str, float], baselines: Mapping[str, float]) -> str:
        """Validation loss, overall and by objective, each beside the baselines on the same targets."""
        parts = []
        for objective in ("", *(f"{name}_" for name in OBJECTIVES)):
            if f"validation_{objective}loss" in metrics:
                names = [n for n in validation.BASELINES if objective + n in baselines]
                others = [f"{n} {baselines[objective + n]:.3f}" for n in names]
                label = objective.rstrip("_").replace("_", " ") or "validation loss, nats per target"
                parts.append(f"{label} {metrics[f'validation_{objective}loss']:.3f} ({', '.join(others)})")
        return "; ".join(parts)

    def sample(self, setup: PretrainingSetup, params: Any) -> str:
        """Blanks of held-out text, filled; nothing by models that learn to fill none."""
        if setup.corruption.masked_lm or setup.corruption.baseline not in (None, "fill_in_the_middle"):
            return ""
        held_out = self._dataset.validation_rows
        return fill_held_out(setup.model, params, self.tokenizer, held_out, seed=self.config.seed)
