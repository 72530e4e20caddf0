"""A sweep of a tiny model that ends in a minute: nine runs, one of which fails, two baselines and an ensemble."""

import pathlib
from typing import Any

from glm_jax import config as defaults
from tests.helpers import tuning_runs


def config(place: pathlib.Path, **changes: Any) -> Any:
    """Its config."""
    sweep = defaults.sweep()
    sweep.base = tuning_runs.config(place)
    sweep.base.test_split = "test"
    sweep.prompts = {
        "is": {"pattern": "{text} It is [MASK].", "verbalizer": {0: " ba", 1: " de"}},
        "first": {"pattern": "[MASK]: {text}", "verbalizer": {0: " go", 1: " ku"}},
    }
    sweep.space = {"schedule.peak_lr": (1e-3, 3e-3)}
    sweep.candidates = (
        {"name": "is", "prompt": "is"},
        {"name": "first", "prompt": "first", "schedule.peak_lr": 3e-3},
        {"name": "LoRA", "method": "lora", "space": {"schedule.peak_lr": (1e-2,)}},
        {"name": "too warm", "schedule.warmup": "90 %", "schedule.peak_lr": 1e-3},
        {"name": "majority", "baseline": "majority"},
        {"name": "TF-IDF", "baseline": "tf_idf"},
    )
    sweep.ensembles = {"both prompts": ("is", "first")}
    sweep.seeds = (0, 1)
    for key, value in changes.items():
        sweep[key] = value
    return sweep
