"""What each tuning method costs here, against full fine-tuning: parameters, memory, seconds, bytes on disk."""

import functools
import statistics
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from glm_jax.benchmarks.decode import generation
from glm_jax.benchmarks.timing import seconds
from glm_jax.decoding import Decoder
from glm_jax.decoding.steps import with_computed_prefix
from glm_jax.evaluation.cloze import forward
from glm_jax.methods import METHODS, without_adapter
from glm_jax.training import host_memory, setup
from glm_jax.tuning.synthetic import synthetic_task
from glm_jax.tuning.task import check_keys

SERVED = ("lora", "p_tuning_v2", "prompt", "ia3")  # what is computed beside the model when it is used


def run(
    config: ConfigDict, size: str = "base", words: int = 200, repeats: int = 5, methods: tuple[str, ...] = (),
    **overrides: Any,
) -> dict:  # fmt: skip
    """A step of every method, in turns with one of full fine-tuning: the median of `repeats` ratios.

    For what stays beside the model as an adapter also scoring and decoding, in turns with the model alone.

    `size` names the model in place of the config's checkpoint; `methods` are all by default.
    """
    names = methods or tuple(name for name in METHODS if name != "full")
    full = _open(config, "full", size, words, overrides)
    baseline = seconds(full["step"], repeats=1)
    results = {"full": _describe(full) | {"seconds_per_step": baseline, "time_of_full": 1.0}}
    for name in names:
        opened = _open(config, name, size, words, overrides)
        seconds(opened["step"], repeats=1)
        host_memory.set_fragments_aside()
        pairs = [(_timed(full["step"]), _timed(opened["step"])) for _ in range(repeats)]
        results[name] = _describe(opened) | {
            "seconds_per_step": statistics.median(own for _, own in pairs),
            "time_of_full": statistics.median(own / other for other, own in pairs),
            **(_serving(opened, repeats) if name in SERVED else {}),
        }
    cost = statistics.median(result["time_of_full"] for name, result in results.items() if name != "full")
    return {
        "value": cost,
        "unit": "seconds of a step over those of full fine-tuning, median of the methods",
        "bound": 1.0,
        "fraction_of_bound": cost,
        "counting": "steps of the method and of full fine-tuning in turns; bytes of all devices",
        "methods": results,
        "model": size,
        "batch_size": config.batch_size,
        "frozen_dtype": config.frozen_dtype,
    }


def _serving(opened, repeats):
    """Scoring the rows, and 32 tokens of greedy decoding for each of 8 prompts, with the adapter over without it."""
    training, rows, state = opened["training"], opened["rows"], opened["state"][0]
    adapted = training.method.join(state.params, state.frozen)
    trees = (without_adapter(adapted), with_computed_prefix(training.model, adapted))
    score = jax.jit(functools.partial(forward, training.model))
    scoring = [functools.partial(_timed, functools.partial(score, params, rows)) for params in trees]
    decoders = [Decoder(training.model, params, training.tokenizer) for params in (trees[0], adapted)]
    decoding = [generation(decoder, 8, 64, 32) for decoder in decoders]
    ratios = {}
    for what, (plain, with_adapter) in (("scoring", scoring), ("decoding", decoding)):
        plain(), with_adapter()
        pairs = [(plain(), with_adapter()) for _ in range(repeats)]
        ratios[f"{what}_over_base"] = statistics.median(own / other for other, own in pairs)
    return ratios


def _timed(step):
    began = time.perf_counter()
    jax.block_until_ready(step())
    return time.perf_counter() - began


def _open(config, name, size, words, overrides):
    config = config.copy_and_resolve_references()
    config.method = name
    if name == "classifier":
        config.head = "classifier"
    check_keys(config)
    training, rows = synthetic_task(config, size, words, **overrides)
    mesh, rules = setup.check_mesh(training.config)
    built = training.make_setup(setup.resolve_durations(config, rows=len(training.train_rows)), mesh, rules)
    with built.activate():
        state = [training.fresh_state(built)]

    def step():
        with built.activate():
            state[0], metrics = built.train_step(state[0], rows)
        return metrics

    return {"step": step, "state": state, "training": training, "rows": rows}


def _describe(opened):
    state = opened["state"][0]
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    frozen = sum(leaf.size for leaf in jax.tree.leaves(state.frozen))
    return {
        "trained_parameters": trained,
        "share_of_parameters": trained / (trained + frozen),
        "gradient_bytes": _bytes(state.params),
        "optimizer_bytes": _bytes(state.opt_state),
        "frozen_bytes": _bytes(state.frozen),
        "adapter_bytes": 4 * trained,
    }


def _bytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
