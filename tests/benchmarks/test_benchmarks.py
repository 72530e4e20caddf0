"""Benchmarks end in one line of JSON, and count what they say they count."""

import jax
import numpy as np
import pytest

from glm_jax.benchmarks import attention as attention_
from glm_jax.benchmarks import compile as compile_
from glm_jax.benchmarks import corruption, decode, finetune, methods, step
from glm_jax.benchmarks import input as input_
from glm_jax.cli.configs import read_config
from glm_jax.model.batch import Batch
from glm_jax.model.config import GLMConfig
from glm_jax.planning.estimate import vocabulary_size
from glm_jax.training.flops import useful_flops
from tests.helpers import tiny_run
from tests.helpers.benchmark_keys import KEYS


def test_useful_flops_worked_by_hand():
    """One layer of width 2, ffn 8, vocabulary 10; Part A 3 tokens, Part B 2 targets."""
    config = GLMConfig(vocab_size=10, num_layers=1, hidden_size=2, num_heads=1, max_position_embeddings=8)
    weights = np.array([[1.0, 1.0, 0.0]])
    batch = Batch(*[None] * 3, np.array([3]), np.array([[3, 4, 0]]), None, weights, None, None)
    keys_values = 5 * 2 * 2 * (2 * 2)  # 5 tokens: two products of 2 x 2
    at_targets = 2 * 2 * (2 * 2 + 2 * 2 + 2 * 8 + 8 * 2)  # 2 targets: query, projection, up, down
    attention = (4 + 5) * 2 * 2 * 2  # visible pairs of the targets: score and weighted sum
    vocabulary = 2 * 2 * 2 * 10
    assert useful_flops(config, batch) == 3 * (keys_values + at_targets + attention + vocabulary)


def test_masked_words_are_no_part_b():
    """Of masked language modelling the rows are as long as their text, and targets see all of it."""
    config = GLMConfig(100, 2, 8, 2, 64)
    one = np.zeros((1, 10), np.int32)
    masked = Batch(
        tokens=one, position_ids=one, block_position_ids=one, prefix_lengths=np.array([10]),
        target_index=np.array([[3, 7]]), target_ids=one[:, :2], target_weights=np.ones((1, 2)),
        target_source=one[:, :2], objective=np.array([0]),
    )  # fmt: skip
    dense = 24 * 8**2 * 10 + (4 * 10 + 20 * 2) * 8**2
    attention = 4 * 8 * (10**2 + 2 * 10)
    assert useful_flops(config, masked) == 3 * (dense + attention + 2 * 8 * 100 * 2)


@pytest.mark.thorough
def test_corruption_benchmark_measures_every_objective():
    result = corruption.run(length=64, batch=4)
    assert set(result["examples_per_second"]) == set(corruption.MIXTURES)
    assert all(rate > 0 for rate in result["examples_per_second"].values())


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder with a corpus and its tokenizer."""
    folder = tmp_path_factory.mktemp("text")
    tiny_run.write_corpus(folder)
    return folder


@pytest.mark.thorough
def test_step_benchmark_states_its_bound(tmp_path):
    result = step.run(tiny_run.config(tmp_path))
    assert result.keys() >= KEYS
    assert 0 < result["fraction_of_bound"] < 1
    assert result["corruption_share"] > 0
    assert result["value"] > 0
    rate = result["useful_flops_per_raw_token"] * result["value"] / 1e9
    assert rate == pytest.approx(result["useful_gflops_per_second"])


@pytest.mark.thorough
def test_step_benchmark_takes_the_vocabulary_of_the_run(tmp_path):
    config = tiny_run.config(tmp_path, model__num_layers=1)
    config.model.size = "base"  # as wide as the tiny run; its vocabulary is not what is trained here
    assert vocabulary_size(config) == config.data.tokenizer.vocab_size
    config.data.tokenizer.vocabulary = "bert"
    assert vocabulary_size(config) == 30592
    small = step.run(config, repeats=1)["useful_flops_per_raw_token"]
    with config.model.ignore_type():
        config.model.vocab_size = 2 * 30592
    assert step.run(config, repeats=1)["useful_flops_per_raw_token"] > 1.5 * small


@pytest.mark.thorough
def test_input_benchmark_holds_the_pipeline_against_the_step(text):
    result = input_.run(tiny_run.config(text), megabytes=0.01, seconds=0.05)
    assert result.keys() >= KEYS
    assert set(result["tokens_per_second"]) >= {"tokenization_of_one_process", "packing_in_one_thread", "pipeline"}
    assert all(rate > 0 for rate in result["tokens_per_second"].values())
    assert result["bound"] == pytest.approx(20 * result["consumed_by_a_device_here"] * jax.device_count())


def test_consumption_follows_from_chips_and_useful_work():
    result = input_.consumption(128, names=("base", "large"))
    assert result["h200"]["base"] / result["v5e"]["base"] == pytest.approx(989.4 / 197)
    # 6 operations for each of 85 M parameters of the layers and a token, and somewhat less or more for the rest
    assert result["v5e"]["base"] == pytest.approx(0.5 * 197e12 / (6 * 85e6), rel=0.3)
    assert result["v5e"]["large"] < result["v5e"]["base"] / 3


@pytest.mark.thorough
def test_compile_benchmark_starts_a_run_twice(text, tmp_path):
    config = tiny_run.config(text)
    result = compile_.run(config, depths=(1, 2), width=16, size="config")
    assert result.keys() >= KEYS
    assert set(result["seconds_by_layers"]) == {"1", "2"}
    assert 0 < result["first_step_warm_seconds"] < 1.2 * result["first_step_cold_seconds"]


def test_a_start_that_fails_says_why(text, tmp_path):
    config = tiny_run.config(text, batch_size=0)
    with pytest.raises(RuntimeError, match="batch_size 0 must be"):
        compile_.first_step(config, str(tmp_path / "run"))


@pytest.mark.thorough
def test_finetune_benchmark_measures_made_up_examples():
    config = read_config("configs/finetune/superglue.py:boolq", {"batch_size": "2"})
    result = finetune.run(config, words=20, num_layers=1, hidden_size=32, num_heads=2, vocab_size=512, dtype="float32")
    assert result.keys() >= KEYS
    assert 0 < result["fraction_of_bound"] < 1
    assert result["value"] == pytest.approx(2 / result["seconds_per_step"])
    assert 40 < result["columns_in_use"] <= result["columns"] <= 64  # two fields of 20 words, and the prompt


def test_finetune_benchmark_says_what_it_cannot_make_up():
    config = read_config("configs/finetune/superglue.py:copa")
    with pytest.raises(ValueError, match="examples of copa need more than texts"):
        finetune.run(config, words=4, num_layers=1, hidden_size=32, num_heads=2, vocab_size=512)


@pytest.mark.thorough
def test_methods_benchmark_measures_each_against_full():
    config = read_config("configs/finetune/superglue.py:boolq", {"batch_size": "2", "frozen_dtype": "bfloat16"})
    tiny = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "vocab_size": 512, "dtype": "float32"}
    result = methods.run(config, words=20, repeats=1, methods=("lora", "classifier", "first_layers"), **tiny)
    assert result.keys() >= KEYS
    costs = result["methods"]
    assert list(costs) == ["full", "lora", "classifier", "first_layers"]
    assert costs["full"]["share_of_parameters"] == 1.0
    for name, cost in costs.items():
        assert cost["optimizer_bytes"] == pytest.approx(2 * cost["gradient_bytes"], abs=64), name
        assert cost["gradient_bytes"] == 4 * cost["trained_parameters"]
        assert ("decoding_over_base" in cost) == ("scoring_over_base" in cost) == (name == "lora")
        if name != "full":
            assert cost["frozen_bytes"] < 2 * costs["full"]["trained_parameters"] + 64


@pytest.mark.parametrize("length", [0, 3])
def test_a_length_that_cannot_be_is_refused(length):
    with pytest.raises(ValueError, match="at least 4"):
        corruption.run(length=length, batch=2)


@pytest.mark.thorough
def test_attention_benchmark_compares_what_runs_here_and_says_what_does_not():
    result = attention_.run(rows=2, length=24, prefix=17, heads=2, dtype="float32")
    table = result["backends"]
    ran = {name for name, row in table.items() if "refused" not in row}
    assert ran == {"dense", "chunked"}
    assert set(table) - ran == {"cudnn", "flash", "splash"}
    assert "needs a Hopper GPU" in table["flash"]["refused"]
    assert table["dense"]["difference"] == 0
    assert table["chunked"]["difference"] < 1e-5
    pairs = 17 * 17 + sum(range(18, 25))
    flops = 3 * 2 * 2 * 2 * 2 * 64 * pairs  # backward twice forward; rows, heads; two products
    row = table["chunked"]
    np.testing.assert_allclose(row["useful_gflops_per_second"] * row["forward_and_backward_seconds"], flops / 1e9)
    dropping = attention_.run(rows=1, length=8, prefix=5, heads=1, dropout=0.5, backends=("dense",), chained=2)
    assert "difference" not in dropping["backends"]["dense"]


def test_attention_benchmark_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="unknown attention backend 'flesh'; known: auto, chunked"):
        attention_.run(backends=("flesh",))
    with pytest.raises(ValueError, match="--prefix=9 of rows of 8 columns"):
        attention_.run(length=8, prefix=9)


@pytest.mark.thorough
def test_decode_benchmark_counts_tokens_and_programs():
    result = decode.run(
        batches=(1, 2), lengths=(4, 8), prompt_length=16,
        layers=1, hidden_size=64, num_heads=2, vocab_size=512, max_position_embeddings=64,
    )  # fmt: skip
    assert set(result["by_batch"]) == {"1", "2"}
    assert result["value"] == result["by_batch"]["1"]["tokens_per_second"] > 0
    assert set(result["milliseconds_per_token_by_length"]) == {"4", "8"}
    assert result["compiled_prefills"] <= 3  # contexts of 32, 48 and 64 columns
