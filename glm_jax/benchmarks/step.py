"""How fast a training step is: raw tokens a second, and the share of the corruption in it."""

import jax
import numpy as np

from glm_jax import program
from glm_jax.benchmarks.corruption import SPECIAL, VOCABULARY, made_up_rows
from glm_jax.benchmarks.timing import matmul_flops_per_second, seconds
from glm_jax.flops import useful_flops
from glm_jax.train_step import Rows


def run(config) -> dict:
    """One optimizer step of `config` on made-up rows, on all local devices."""
    mesh, rules = program.check(config)
    tokens, ends = made_up_rows(config.batch_size, config.data.sequence_length)
    schedule = program.schedule_of(config, rows=1000)
    built = program.build(config, schedule, mesh, rules, vocab_size=VOCABULARY, special=SPECIAL, sentence_ends=ends)
    rows = Rows(tokens, np.full(len(tokens), tokens.shape[1], np.int32), np.arange(len(tokens), dtype=np.uint32))
    with built.activate():
        state = built.init(jax.random.key(0))
        carried = [state]

        def step():
            carried[0], metrics = built.train_step(carried[0], rows)
            return metrics

        step_seconds = seconds(step)
        corruption_seconds = seconds(built.corrupt_held_out, rows)
        batch = jax.device_get(built.corrupt_held_out(rows))
    bound = matmul_flops_per_second(built.model.config.dtype) * jax.device_count()
    flops = useful_flops(built.model.config, batch)
    return {
        "figure": tokens.size / step_seconds,
        "unit": "raw tokens/s",
        "seconds_per_step": step_seconds,
        "corruption_share": corruption_seconds / step_seconds,
        "useful_gflops_per_second": flops / step_seconds / 1e9,
        "bound": bound / 1e9,
        "bound_unit": "GFLOP/s of a plain matrix product in the same run",
        "fraction_of_bound": flops / step_seconds / bound,
        "counting": "useful work only: visible query-key pairs, real positions, targets; backward counts twice forward",
    }
