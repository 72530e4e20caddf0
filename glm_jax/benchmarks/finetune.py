"""How fast fine-tuning is: examples per second of one step of a config, on synthetic examples of its task."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from glm_jax.benchmarks.timing import time_against_matmuls
from glm_jax.training import setup
from glm_jax.training.flops import useful_flops
from glm_jax.tuning.synthetic import synthetic_task


def run(config: ConfigDict, size: str = "base", words: int = 200, **overrides: Any) -> dict:
    """One optimizer step on examples whose fields have `words` random words each, truncated to the task's lengths.

    `size` names the model in place of the config's checkpoint; `overrides` replace fields of its GLMConfig.

    Raises ValueError for a config with several tasks, or with one whose examples need more than texts and a label.
    """
    training, rows = synthetic_task(config, size, words, **overrides)
    config, task, model = training.config, training.tasks[0], training.model.config
    mesh, rules = setup.check_mesh(config)
    built = training.make_setup(setup.resolve_durations(config, rows=len(training.train_rows)), mesh, rules)
    with built.activate():
        state = [training.fresh_state(built)]

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
