"""Whether the host keeps devices fed: tokenization, packing and the Grain pipeline, against what a step consumes."""

import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from glm_jax import data
from glm_jax.benchmarks import step
from glm_jax.corruption.config import CorruptionConfig
from glm_jax.corruption.corrupt import corrupt
from glm_jax.data.corpora import open_corpus
from glm_jax.data.specs import DataSpec
from glm_jax.data.synthetic import SPECIAL, random_rows
from glm_jax.distributed import sharding
from glm_jax.distributed.accelerators import ACCELERATORS
from glm_jax.model.config import GLMConfig
from glm_jax.training import setup
from glm_jax.training.flops import useful_flops
from glm_jax.training.train_step import TokenRows

TARGET_RATIO = 20  # how many devices like the one at hand the host should be able to feed
_MFU = 0.5  # assumed of the devices in `consumption`


def run(config: Any, megabytes: float = 4.0, seconds: float = 3.0) -> dict:
    """Measures the corpora of `config`, which are prepared first if necessary, and its step.

    `megabytes` of text are tokenized in one process; each later stage runs for `seconds`.
    """
    mesh, rules = setup.check(config)
    dataset = data.load(config.data.to_dict())
    rows, size = dataset.train_rows, config.batch_size
    order = np.random.default_rng(0).integers(0, len(rows), 100_000).tolist()
    row_numbers = itertools.cycle(order)
    batches = data.train_iterator(rows, batch_size=size, seed=config.seed, workers=config.data.loader_workers)

    def to_device():
        return sharding.host_to_device(TokenRows(**next(batches)), mesh, rules)

    with jax.set_mesh(mesh):
        rates = {
            "tokenization_of_one_process": _tokenize(config, dataset.tokenizer, megabytes),
            "packing_in_one_thread": _rate(lambda: rows[next(row_numbers)]["length"], seconds),
            "pipeline": _rate(lambda: next(batches)["lengths"].sum(), seconds),
            "pipeline_to_device": _rate(lambda: to_device().lengths, seconds, count=np.sum),
        }
    consumed = step.run(config)["value"]
    rate, bound = rates["pipeline_to_device"], TARGET_RATIO * consumed
    return {
        "value": rate,
        "unit": "raw tokens/s that reach the devices",
        "bound": bound,
        "bound_unit": f"{TARGET_RATIO} times the raw tokens/s of the config's step, measured in the same run",
        "fraction_of_bound": rate / bound,
        "tokens_per_second": rates,
        "cores": os.cpu_count(),
        "consumed_by_a_device_here": consumed / jax.device_count(),
        f"consumed_at_{_MFU:.0%}_mfu": consumption(config.data.sequence_length),
        "counting": "raw tokens with [CLS] and [EOS], without padding; one host process; tokenization runs once, "
        "before training, in as many processes as there are cores",
    }


def consumption(length: int, names: tuple[str, ...] = ("base", "large", "10b")) -> dict[str, dict[str, float]]:
    """Raw tokens per second that one chip consumes at half of its peak: by chip, for models of these sizes.

    Computed as `Accelerator.flops` / 2 / `flops.useful_flops` of a raw token of blank infilling in rows of `length`.
    """
    tokens, _ = random_rows(64, length)
    index, lengths = np.arange(64, dtype=np.uint32), np.full(64, length, np.int32)
    batch = corrupt(jax.random.key(0), tokens, lengths, index, config=CorruptionConfig(), special=SPECIAL)
    batch = jax.device_get(batch)
    each = {name: useful_flops(GLMConfig.named(name), batch) / tokens.size for name in names}
    return {
        chip.name: {name: _MFU * chip.flops / flops for name, flops in each.items()}
        for chip in ACCELERATORS
        if chip.name in ("v5e", "v5p", "h200")
    }


def _tokenize(config, tokenizer, megabytes):
    spec = DataSpec.from_dict(config.data.to_dict())
    texts, remaining = [], megabytes * 1e6
    for corpus in spec.corpora:
        for text, _ in open_corpus(corpus, os.path.expanduser(spec.data_dir)).documents("train"):
            texts.append(text)
            remaining -= len(text)
            if remaining <= 0:
                break
    tokenizer.encode(texts[0][:1000])
    began = time.perf_counter()
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    return tokens / (time.perf_counter() - began)


def _rate(function: Callable[[], Any], seconds: float, count: Callable = int) -> float:
    """Sum of `count(function())` per second; the first calls fill buffers and are not counted."""
    for _ in range(3):
        function()
    results, began = [], time.perf_counter()
    while time.perf_counter() - began < seconds or not results:
        results.append(function())
    jax.block_until_ready(results)
    spent = time.perf_counter() - began
    return sum(int(count(np.asarray(result))) for result in results) / spent
