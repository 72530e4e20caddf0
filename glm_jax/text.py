"""What pretraining learns from: corpora, whose text is corrupted inside the compiled step.

`trainer.train` asks its subject for rows, functions, and what to tell people. Fine-tuning has another subject:
glm_jax/tuning/subject.py.
"""

import functools
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from glm_jax import data, program, sharding, validation
from glm_jax.corruption import OBJECTIVES
from glm_jax.flops import useful_flops
from glm_jax.run_folder import BEST, RunFolder, load_run
from glm_jax.samples import fill_held_out
from glm_jax.train_step import Rows

logger = logging.getLogger(__name__)


class Text:
    """The subject of a pretraining run.

    Attributes:
      tokenizer: copied into the run folder.
      train_rows: for `data.train_iterator`.
      best: (metric, mode) of the checkpoint that is kept.
    """

    best = BEST
    check = staticmethod(program.check)
    rows = staticmethod(lambda batch: Rows(**batch))

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
        eval_batch = config.batch_size // config.accumulation
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

    def build(self, schedule: program.Schedule, mesh, rules) -> program.Program:
        """The run's functions."""
        config, tokenizer = self._config, self.tokenizer
        run = program.build(
            config, schedule, mesh, rules,
            vocab_size=tokenizer.vocab_size, special=tokenizer.special, sentence_ends=tokenizer.sentence_ends(),
        )  # fmt: skip
        length = config.data.sequence_length
        for number, lane in enumerate(lanes := run.corruption.lanes()):
            capacity = lane.capacity(length)
            logger.info(
                "corruption%s: T = %d, room for %d blanks beside a full row; at most %d blanks and %d targets an "
                "example; blank infilling wants more with p = %.1e",
                f" of lane {number + 1}" if len(lanes) > 1 else "", lane.sequence_length(length),
                lane.row_spans(length), capacity.max_spans, capacity.max_targets, capacity.cap_rate,
            )  # fmt: skip
        return run

    def fingerprint(self) -> list:
        """What must be the same on every host."""
        return [self.tokenizer.fingerprint(), self.train_rows.fingerprint(), len(self._dataset.validation_rows)]

    @staticmethod
    def flops_per_token(run: program.Program, rows: Rows) -> float:
        """Useful operations of a raw token in this batch. Every host calls it: the batch is spread over all."""
        gather = jax.jit(lambda rows: (run.corrupt(rows), rows.lengths), out_shardings=sharding.replicated(run.mesh))
        batch, lengths = jax.device_get(gather(rows))
        return useful_flops(run.model.config, batch) / max(float(lengths.sum()), 1.0)

    def initial_parameters(self, run: program.Program, fresh: Any) -> Any:
        """The parameters of the run `init_from`, placed like the fresh ones. Raises ValueError for other shapes."""
        path = self._config.init_from
        loaded = load_run(path)
        shapes = [jax.tree.map(lambda a: a.shape, params) for params in (loaded.params, fresh)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"init_from {path}: its model has other shapes ({loaded.model.config}); use the same model"
            )
        return jax.tree.map(jax.device_put, loaded.params, run.shardings.params)

    def evaluate(self, run: program.Program, params: Any, process: int = 0, processes: int = 1) -> dict[str, float]:
        """See `validation.evaluate`."""
        return validation.evaluate(run, params, self._held_out(process=process, processes=processes))

    def baselines(self, run: program.Program) -> dict[str, float]:
        """See `validation.baselines`."""
        return validation.baselines(run, self._dataset.ngram_baseline(), self._held_out(), self.tokenizer.special.cls)

    def show(self, run: program.Program, params: Any) -> str:
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
