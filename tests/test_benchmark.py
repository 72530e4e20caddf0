"""Benchmarks end in one line of JSON, and count what they say they count."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_run

from glm_jax.batch import Batch
from glm_jax.benchmarks import corruption, decode, step
from glm_jax.model import GLMConfig

ROOT = pathlib.Path(__file__).parent.parent


def test_useful_flops_worked_by_hand():
    """One layer of width 2, ffn 8, vocabulary 10; Part A 3 tokens, Part B 2 targets."""
    config = GLMConfig(vocab_size=10, num_layers=1, hidden_size=2, num_heads=1, max_position_embeddings=8)
    weights = np.array([[1.0, 1.0, 0.0]])
    batch = Batch(*[None] * 3, np.array([3]), None, None, weights, None, None)
    keys_values = 5 * 2 * 2 * (2 * 2)  # 5 tokens: two products of 2 x 2
    at_targets = 2 * 2 * (2 * 2 + 2 * 2 + 2 * 8 + 8 * 2)  # 2 targets: query, projection, up, down
    attention = (4 + 5) * 2 * 2 * 2  # visible pairs of the targets: score and weighted sum
    vocabulary = 2 * 2 * 2 * 10
    assert step.useful_flops(config, batch) == 3 * (keys_values + at_targets + attention + vocabulary)


def test_corruption_benchmark_measures_every_objective():
    result = corruption.run(length=64, batch=4)
    assert set(result["examples_per_second"]) == set(corruption.MIXTURES)
    assert all(rate > 0 for rate in result["examples_per_second"].values())


def test_step_benchmark_states_its_bound(tmp_path):
    result = step.run(tiny_run.config(tmp_path))
    assert 0 < result["fraction_of_bound"] < 1
    assert result["corruption_share"] > 0
    assert result["figure"] > 0


def test_the_verb_prints_json_last():
    command = [sys.executable, "-m", "glm_jax.benchmark", "step", "--config", "no/such.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no/such.py is no config file" in done.stderr
    command = [sys.executable, "-m", "glm_jax.benchmark", "corruption", "--length=32", "--batch=2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["jax"] == jax.__version__


@pytest.mark.parametrize("length", [0, 3])
def test_a_length_that_cannot_be_is_refused(length):
    with pytest.raises(ValueError, match="at least 4"):
        corruption.run(length=length, batch=2)


def test_decode_benchmark_counts_tokens_and_programs():
    result = decode.run(
        batches=(1, 2), lengths=(4, 8), prompt_length=16,
        num_layers=1, hidden_size=64, num_heads=2, vocab_size=512, max_position_embeddings=64,
    )  # fmt: skip
    assert set(result["by_batch"]) == {"1", "2"}
    assert result["figure"] == result["by_batch"]["1"]["tokens_per_second"] > 0
    assert set(result["milliseconds_per_token_by_length"]) == {"4", "8"}
    assert result["compiled_prefills"] <= 3  # contexts of 32, 48 and 64 columns
