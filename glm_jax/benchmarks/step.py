"""How fast a training step is: raw tokens per second, and the share of the corruption in it."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from glm_jax.benchmarks.timing import seconds, time_against_matmuls
from glm_jax.data.synthetic import SPECIAL, random_rows
from glm_jax.distributed import sharding
from glm_jax.distributed.accelerators import accelerator_of
from glm_jax.model.batch import Batch
from glm_jax.planning.estimate import vocabulary_size
from glm_jax.training import setup
from glm_jax.training.flops import useful_flops
from glm_jax.training.train_step import TokenRows


class OpenStep(NamedTuple):
    """The step of a config, which can be called repeatedly on the same synthetic rows."""

    built: setup.TrainingSetup
    rows: TokenRows
    batch: Batch  # of the rows, on the host
    state: list[Any]  # the newest TrainState
    flops: float  # useful FLOPs of a step

    def __call__(self) -> dict[str, Any]:
        """Runs one step and returns its metrics."""
        self.state[0], metrics = self.built.train_step(self.state[0], self.rows)
        return metrics


@contextlib.contextmanager
def open_step(config, devices: Sequence[Any] | None = None) -> Iterator[OpenStep]:
    """Opens the step of `config` on `devices` (default: all); its vocabulary has the size that the run's would have."""
    mesh, rules = setup.check(config, devices)
    tokens, ends = random_rows(config.batch_size, config.data.sequence_length)
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
        step = OpenStep(built, rows, batch, [built.init(jax.random.key(0))], useful_flops(built.model.config, batch))
        yield step
        step.state.clear()


def run(config, repeats: int = 7) -> dict:
    """One optimizer step of `config` on synthetic rows, on all local devices; the median of `repeats`."""
    with open_step(config) as step:
        dtype = step.built.model.config.dtype
        measured = time_against_matmuls(step, dtype, repeats)
        corruption_seconds = seconds(step.built.corrupt, step.rows)
    tokens, flops = step.rows.tokens, step.flops
    devices, step_seconds = jax.device_count(), measured.seconds
    device = jax.devices()[0]
    chip, memory = accelerator_of(device), device.memory_stats()  # a CPU has neither
    return {
        "value": tokens.size / step_seconds,
        "unit": "raw tokens/s",
        "seconds_per_step": step_seconds,
        "corruption_share": corruption_seconds / step_seconds,
        "useful_gflops_per_second": flops / step_seconds / 1e9,
        "bound": measured.flops_per_second * devices / 1e9,
        "bound_unit": "GFLOP/s of plain matrix multiplications, measured before and after every step",
        "fraction_of_bound": flops / (measured.flops * devices),
        "mfu": chip and flops / step_seconds / (chip.flops * devices),
        "peak_memory_bytes": memory and memory.get("peak_bytes_in_use"),
        "useful_flops_per_raw_token": flops / tokens.size,
        "batch_size": config.batch_size,
        "raw_length": config.data.sequence_length,
        "dtype": dtype,
        "counting": "useful work only: visible query-key pairs, real positions, targets; backward counts twice forward",
    }
