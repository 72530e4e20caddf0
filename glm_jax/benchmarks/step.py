"""How fast a training step is: raw tokens a second, and the share of the corruption in it."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from glm_jax.benchmarks.timing import beside_products, seconds
from glm_jax.data.synthetic import SPECIAL, made_up_rows
from glm_jax.distributed import sharding
from glm_jax.distributed.accelerators import accelerator_of
from glm_jax.model.batch import Batch
from glm_jax.planning.estimate import vocabulary_size
from glm_jax.training import setup
from glm_jax.training.flops import useful_flops
from glm_jax.training.train_step import TokenRows


class Opened(NamedTuple):
    """The step of a config, ready to be called again and again on the same made-up rows."""

    built: setup.TrainingSetup
    rows: TokenRows
    batch: Batch  # what the rows become, on the host
    state: list[Any]  # the newest TrainState
    flops: float  # useful ones of a step

    def __call__(self) -> dict[str, Any]:
        """One step; its metrics."""
        self.state[0], metrics = self.built.train_step(self.state[0], self.rows)
        return metrics


@contextlib.contextmanager
def opened(config, devices: Sequence[Any] | None = None) -> Iterator[Opened]:
    """The step of `config` on all devices, or on these; its vocabulary is as large as the run's tokenizer would be."""
    mesh, rules = setup.check(config, devices)
    tokens, ends = made_up_rows(config.batch_size, config.data.sequence_length)
    vocabulary = max(vocabulary_size(config), len(ends))
    schedule = setup.resolve_durations(config, rows=1000)
    built = setup.make_setup(
        config, schedule, mesh, rules, vocab_size=vocabulary, special=SPECIAL,
        sentence_ends=np.pad(ends, (0, vocabulary - len(ends))),
    )  # fmt: skip
    rows = TokenRows(tokens, np.full(len(tokens), tokens.shape[1], np.int32), np.arange(len(tokens), dtype=np.uint32))
    with built.activate():
        batch = jax.device_get(built.corrupt(rows))
        rows = sharding.host_to_device(rows, mesh, rules)
        step = Opened(built, rows, batch, [built.init(jax.random.key(0))], useful_flops(built.model.config, batch))
        yield step
        step.state.clear()


def run(config, repeats: int = 7) -> dict:
    """One optimizer step of `config` on made-up rows, on all local devices; the median of `repeats`."""
    with opened(config) as step:
        dtype = step.built.model.config.dtype
        measured = beside_products(step, dtype, repeats)
        corruption_seconds = seconds(step.built.corrupt, step.rows)
    tokens, flops = step.rows.tokens, step.flops
    devices, step_seconds = jax.device_count(), measured.seconds
    device = jax.devices()[0]
    chip, memory = accelerator_of(device), device.memory_stats()  # a CPU has neither
    return {
        "figure": tokens.size / step_seconds,
        "unit": "raw tokens/s",
        "seconds_per_step": step_seconds,
        "corruption_share": corruption_seconds / step_seconds,
        "useful_gflops_per_second": flops / step_seconds / 1e9,
        "bound": measured.flops_per_second * devices / 1e9,
        "bound_unit": "GFLOP/s of plain matrix products, measured before and after every step",
        "fraction_of_bound": flops / (measured.flops * devices),
        "mfu": chip and flops / step_seconds / (chip.flops * devices),
        "peak_memory_bytes": memory and memory.get("peak_bytes_in_use"),
        "useful_flops_per_raw_token": flops / tokens.size,
        "batch_size": config.batch_size,
        "raw_length": config.data.sequence_length,
        "dtype": dtype,
        "counting": "useful work only: visible query-key pairs, real positions, targets; backward counts twice forward",
    }
