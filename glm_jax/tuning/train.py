"""The Python entry to training: `glm_jax.train(config, workdir)`, for notebooks and scripts."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from glm_jax.training.pretraining import PretrainingTask
from glm_jax.training.trainer import train_task
from glm_jax.tuning.run import finetune


def train(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    on_log: Callable[[int, Mapping[str, Any]], None] | None = None,
    profile: str | None = None,
) -> dict[str, Any]:
    """Trains what `config` says in the folder `workdir`; the same call resumes, or returns the result of, a run there.

        config = glm_jax.config.pretrain()
        config.train_duration = "200 steps"
        result = glm_jax.train(config, "runs/mine", on_log=lambda step, metrics: print(step, metrics.get("loss")))

    Where nobody has configured logging, the run's log lines go to stderr. Interrupting the cell of a notebook (or
    Ctrl-C, or SIGTERM) ends the run after the current step with its state saved, and raises
    `training.trainer.Interrupted`, a KeyboardInterrupt; a second interrupt stops at once, without saving.

    Args:
      config: `glm_jax.config.pretrain()` or `finetune()` with changes, or what a file of configs/ returns.
      workdir: the run folder; created if missing.
      on_log: called on process 0 with (step, metrics) for every line of metrics.jsonl: `loss` and rates at each
        `log_every`, `validation_…` at each `eval_every`.
      profile: "steps=10:15" writes a trace of these steps to workdir/profile.

    Returns:
      Of pretraining the final result, as in result.json; of fine-tuning the test, as in test.json.

    Raises:
      ValueError: a config, a corpus, a checkpoint or a folder that cannot be used; before anything is compiled.
      NonFiniteError: training diverges.
      Interrupted: after an interrupt, when the state is saved.
    """
    if not isinstance(config, ConfigDict):
        raise TypeError(
            f"train takes a config such as glm_jax.config.pretrain(), or what get_config() of a file returns, not "
            f"{type(config).__name__}"
        )
    if on_log is not None and not callable(on_log):
        raise TypeError(f"on_log {on_log!r} must be a function of (step, metrics)")
    with _log_lines():
        if config.kind == "finetune":
            return finetune(config, workdir, on_log=on_log, profile=profile)
        return train_task(PretrainingTask(config), workdir, on_log=on_log, profile=profile)


@contextlib.contextmanager
def _log_lines() -> Iterator[None]:
    """Shows this package's log lines during the block, where nobody has decided what is shown."""
    logger = logging.getLogger("glm_jax")
    if logger.level != logging.NOTSET or logger.handlers or logging.getLogger().level != logging.WARNING:
        yield
        return
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # other handlers would say the same once more
    try:
        yield
    finally:
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
        logger.removeHandler(handler)
