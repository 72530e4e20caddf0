"""How fast rows become batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from glm_jax.benchmarks.timing import bytes_per_second, seconds
from glm_jax.corruption.config import CorruptionConfig
from glm_jax.corruption.corrupt import corrupt
from glm_jax.data.synthetic import SPECIAL, random_rows

MIXTURES = {
    "blank_infilling": {},
    "sentence": {"blank_infilling": 0.0, "sentence": 1.0, "task_masks": True},
    "document": {"blank_infilling": 0.0, "document": 1.0, "task_masks": True},
    "mixture": {"blank_infilling": 0.5, "sentence": 0.3, "document": 0.2, "task_masks": True},  # the original's 10B
}


def run(length: int = 512, batch: int = 256) -> dict:
    """Examples per second of `corrupt` alone, for each objective and the mixture, on the default device."""
    tokens, ends = random_rows(batch, length)
    lengths, index = np.full(batch, length, np.int32), np.arange(batch, dtype=np.uint32)
    arguments = jax.random.key(0), *map(jnp.asarray, (tokens, lengths, index, ends))
    rates = {}
    for name, options in MIXTURES.items():
        function = functools.partial(corrupt, config=CorruptionConfig(**options), special=SPECIAL)
        rates[name] = batch / seconds(function, *arguments, repeats=31)
    out = CorruptionConfig().sequence_length(length)
    # At least the raw rows are read, and the three arrays of shape [B, T] are written.
    moved = 4 * (length + 3 * out)
    bound = bytes_per_second([jnp.zeros((4096, 4096))]) / moved
    return {
        "value": rates["blank_infilling"],
        "unit": "examples/s",
        "bound": bound,
        "bound_unit": f"examples/s if each only moved {moved} bytes at the bandwidth measured in the same run",
        "fraction_of_bound": rates["blank_infilling"] / bound,
        "examples_per_second": rates,
        "raw_length": length,
        "batch": batch,
        "counting": "whole examples from raw rows of two documents to model-ready batches, compilation excluded",
    }
