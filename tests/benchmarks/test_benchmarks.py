"""Benchmarks end in one line of JSON, and count what they say they count."""

import importlib
import inspect
import json
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.benchmarks import attention as attention_
from glm_jax.benchmarks import command, corruption, decode, finetune, step
from glm_jax.benchmarks import compile as compile_
from glm_jax.benchmarks import input as input_
from glm_jax.corruption.config import CorruptionConfig
from glm_jax.distributed.sharding import unbox
from glm_jax.model.batch import Batch
from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import GLM, init_params
from glm_jax.planning.estimate import vocabulary_size
from glm_jax.training.flops import useful_flops
from glm_jax.training.train_step import TokenRows, blank_infilling, make_corrupt
from tests.helpers import tiny_run
from tests.helpers.paths import ROOT
from tools import choices, growth, peer


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


def test_corruption_benchmark_measures_every_objective():
    result = corruption.run(length=64, batch=4)
    assert set(result["examples_per_second"]) == set(corruption.MIXTURES)
    assert all(rate > 0 for rate in result["examples_per_second"].values())


KEYS = {"figure", "unit", "bound", "fraction_of_bound", "counting"}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder with a corpus and its tokenizer."""
    folder = tmp_path_factory.mktemp("text")
    tiny_run.write_corpus(folder)
    return folder


def test_step_benchmark_states_its_bound(tmp_path):
    result = step.run(tiny_run.config(tmp_path))
    assert result.keys() >= KEYS
    assert 0 < result["fraction_of_bound"] < 1
    assert result["corruption_share"] > 0
    assert result["figure"] > 0
    rate = result["useful_flops_per_raw_token"] * result["figure"] / 1e9
    assert rate == pytest.approx(result["useful_gflops_per_second"])


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


# What stands in for an interpreter with torch: reads what the peer gets, and computes its loss here.
STAND_IN = """#!{python}
import json, pathlib, sys
sys.path.insert(0, {root!r})
import flax.traverse_util, jax, jax.numpy as jnp, numpy as np
from glm_jax.model.transformer import GLM
from glm_jax.model.config import GLMConfig
folder = pathlib.Path(sys.argv[2])
shape, batch = json.loads((folder / "shape.json").read_text()), np.load(folder / "batch.npz")
assert (shape.pop("device"), shape.pop("compiled")) == ("cpu", {compiled})
params = flax.traverse_util.unflatten_dict(dict(np.load(folder / "parameters.npz")), sep="/")
vocab, positions = (params[f"{{name}}_embeddings"]["embedding"].shape[0] for name in ("word", "position"))
model = GLM(GLMConfig(vocab_size=vocab, max_position_embeddings=positions - 1, **shape))
inputs = [batch[n] for n in "tokens position_ids block_position_ids prefix_lengths target_index".split()]
found = jax.nn.log_softmax(model.apply({{"params": params}}, *inputs))
losses = -jnp.take_along_axis(found, batch["target_ids"][..., None], axis=-1)[..., 0] * batch["target_weights"]
print("loss", {factor} * float(losses.sum() / batch["target_weights"].sum()), flush=True)
for line in sys.stdin:
    print(0.25, flush=True)
"""


def stand_in(folder, factor=1.0, compiled=True):
    path = folder / "python"
    path.write_text(STAND_IN.format(python=sys.executable, root=str(ROOT), factor=factor, compiled=compiled))
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("changes", [{}, {"corruption__document": 1.0, "corruption__pack_objectives": True}])
def test_peer_benchmark_holds_both_steps_against_each_other(tmp_path, changes):
    config = tiny_run.config(tmp_path, model__dtype="float32", **changes)
    result = peer.run(config, repeats=3, python=stand_in(tmp_path, compiled=False), mode="eager")
    assert result.keys() >= KEYS
    assert result["seconds_per_step_of_peer"] == 0.25
    assert result["figure"] == pytest.approx(0.25 / result["seconds_per_step"])
    ours, theirs = result["loss_of_both"]
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_peer_of_another_loss_is_refused(tmp_path):
    config = tiny_run.config(tmp_path, model__dtype="float32")
    with pytest.raises(ValueError, match="the peer's loss of the same parameters and batch is"):
        peer.run(config, python=stand_in(tmp_path, factor=1.1))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"mode": "fast"}, "mode 'fast' must be compiled or eager"),
        ({}, {"python": "/no/such/python"}, "'/no/such/python' cannot be run"),
        ({}, {"python": "/bin/false"}, "/bin/false stopped with status 1.*--python=INTERPRETER"),
        ({"corruption__short_sequence_prob": 0.5}, {}, "short_sequence_prob 0"),
    ],
)
def test_a_peer_that_cannot_run_says_why(tmp_path, changes, options, message):
    with pytest.raises(ValueError, match=message):
        peer.run(tiny_run.config(tmp_path, **changes), **options)


@pytest.mark.parametrize("gelu", ["tanh", "exact"])
def test_the_peer_in_torch_has_the_same_loss(tmp_path, gelu):
    pytest.importorskip("torch")
    config = tiny_run.config(tmp_path, model__dtype="float32", model__gelu=gelu)
    assert peer.run(config, repeats=1, mode="eager")["figure"] > 0


def test_input_benchmark_holds_the_pipeline_against_the_step(text):
    result = input_.run(tiny_run.config(text), megabytes=0.01, seconds=0.05)
    assert result.keys() >= KEYS
    assert set(result["tokens_per_second"]) >= {"tokenisation_of_one_process", "packing_in_one_thread", "pipeline"}
    assert all(rate > 0 for rate in result["tokens_per_second"].values())
    assert result["bound"] == pytest.approx(20 * result["appetite_of_a_device_here"] * jax.device_count())


def test_appetites_follow_from_chips_and_useful_work():
    found = input_.appetites(128, names=("base", "large"))
    assert found["h200"]["base"] / found["v5e"]["base"] == pytest.approx(989.4 / 197)
    # 6 operations for each of 85 M parameters of the layers and a token, and somewhat less or more for the rest
    assert found["v5e"]["base"] == pytest.approx(0.5 * 197e12 / (6 * 85e6), rel=0.3)
    assert found["v5e"]["large"] < found["v5e"]["base"] / 3


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


def test_finetune_benchmark_measures_made_up_examples():
    config = command.read_config("configs/finetune/superglue.py:boolq", ["--config.batch_size=2"])
    result = finetune.run(config, words=20, num_layers=1, hidden_size=32, num_heads=2, vocab_size=512, dtype="float32")
    assert result.keys() >= KEYS
    assert 0 < result["fraction_of_bound"] < 1
    assert result["figure"] == pytest.approx(2 / result["seconds_per_step"])
    assert 40 < result["columns_in_use"] <= result["columns"] <= 64  # two fields of 20 words, and the prompt


def test_finetune_benchmark_says_what_it_cannot_make_up():
    config = command.read_config("configs/finetune/superglue.py:copa", [])
    with pytest.raises(ValueError, match="examples of copa need more than texts"):
        finetune.run(config, words=4, num_layers=1, hidden_size=32, num_heads=2, vocab_size=512)


def test_growth_is_measured_and_drawn(tmp_path):
    result = growth.run(picture=str(tmp_path / "growth.svg"), largest=2, repeats=1)
    assert result.keys() >= KEYS
    assert set(result["sweeps"]) == {"batch", "row length", "layers", "devices"}
    points = result["sweeps"]["layers"]
    assert points["1"]["state_bytes"] < points["2"]["state_bytes"]
    assert points["1"]["useful_flops"] < points["2"]["useful_flops"]
    assert (tmp_path / "growth.svg").stat().st_size > 1000
    with pytest.raises(ValueError, match="must end in"):
        growth.run(picture="growth.pdf")


@pytest.mark.parametrize("vocabulary", [True, False])
@pytest.mark.parametrize("laid_out", [CorruptionConfig(), CorruptionConfig(document=1.0, pack_objectives=True)])
def test_choices_undo_work_but_change_no_loss(vocabulary, laid_out):
    config = GLMConfig(
        vocab_size=corruption.VOCABULARY, num_layers=2, hidden_size=32, num_heads=2, max_position_embeddings=64,
        dtype="float32", hidden_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    model = GLM(config)
    tokens, ends = corruption.made_up_rows(2, 32)
    rows = TokenRows(jnp.asarray(tokens), jnp.full(2, 32), jnp.arange(2, dtype=jnp.uint32))
    corrupt_rows = make_corrupt(0, laid_out, corruption.SPECIAL, ends)
    params = unbox(init_params(config, jax.random.key(0)))
    usual = blank_infilling(model, corrupt_rows)
    undone = choices.everywhere(model, corrupt_rows, vocabulary=vocabulary)
    (loss, sums), (other, other_sums) = usual(params, rows), undone(params, rows)
    np.testing.assert_allclose(loss, other, rtol=1e-5)
    assert sums.weight.sum() == other_sums.weight.sum() > 0


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match="unknown choice 'sparse'; known: dense, remat full"):
        choices.run(command.read_config("configs/pretrain/glm_large.py", []), "v5e:2x2", ("sparse",))


def _verb(*arguments):
    command = [sys.executable, "-m", "glm_jax", "benchmark", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_verb_prints_json_last():
    done = _verb("corruption", "--length=32", "--batch=2")
    result = json.loads(done.stdout.splitlines()[-1])
    assert result.keys() >= KEYS
    assert result["jax"] == jax.__version__


def test_the_verb_ends_with_one_line():
    done = _verb("step", "--config", "no/such.py")
    assert done.returncode == 1
    assert done.stderr == "ValueError: no/such.py is no config file: name one of configs/\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("step", "--config.model.num_layer=2"), 'Did you mean "num_layers"'),
        (("step", "--config.batch_size=many"), "invalid literal for int"),
        (("step", "--config="), "is no config file"),
        (("finetune", "--config=configs/finetune/superglue.py:nix"), "'nix' is no task: choose from boolq"),
    ],
)
def test_wrong_configs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        command.parse(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stride",), "invalid choice: 'stride'"),
        (("corruption", "--lenth=3"), "corruption does not know '--lenth=3'"),
        (("corruption", "--config.batch_size=3"), "does not know"),
        (("step", "now"), "step does not know 'now'"),
    ],
)
def test_wrong_words_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        command.parse(arguments)
    assert message in capsys.readouterr().err


def test_keys_and_options_reach_the_measurement():
    verb, measure = command.parse(["step", "--config", "configs/pretrain/glm_base.py", "--config.batch_size=4"])
    assert verb == "step"
    assert measure.args[0].batch_size == 4
    assert measure.args[0].model.size == "base"
    _, measure = command.parse(["decode", "--batches", "2", "3", "--layers=1"])
    assert measure.keywords["batches"] == (2, 3)
    assert measure.keywords["layers"] == 1


def test_the_commands_of_the_page_are_understood(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "performance.md").read_text().replace("\\\n", " ")
    commands = [shlex.split(line)[4:] for line in page.splitlines() if line.startswith("$ python -m glm_jax benchmark")]
    verbs = {command.parse(words)[0] for words in commands}
    assert verbs == set(command.MEASUREMENTS)


def test_every_measurement_takes_its_options():
    for name, measurement in command.MEASUREMENTS.items():
        run = importlib.import_module(f"glm_jax.benchmarks.{name}").run
        assert set(measurement.options) <= set(inspect.signature(run).parameters), name


@pytest.mark.parametrize("length", [0, 3])
def test_a_length_that_cannot_be_is_refused(length):
    with pytest.raises(ValueError, match="at least 4"):
        corruption.run(length=length, batch=2)


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
    dropping = attention_.run(rows=1, length=8, prefix=5, heads=1, dropout=0.5, backends=("dense",), in_a_row=2)
    assert "difference" not in dropping["backends"]["dense"]


def test_attention_benchmark_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="unknown attention backend 'flesh'; known: auto, chunked"):
        attention_.run(backends=("flesh",))
    with pytest.raises(ValueError, match="--prefix=9 of rows of 8 columns"):
        attention_.run(length=8, prefix=9)


def test_decode_benchmark_counts_tokens_and_programs():
    result = decode.run(
        batches=(1, 2), lengths=(4, 8), prompt_length=16,
        layers=1, hidden_size=64, num_heads=2, vocab_size=512, max_position_embeddings=64,
    )  # fmt: skip
    assert set(result["by_batch"]) == {"1", "2"}
    assert result["figure"] == result["by_batch"]["1"]["tokens_per_second"] > 0
    assert set(result["milliseconds_per_token_by_length"]) == {"4", "8"}
    assert result["compiled_prefills"] <= 3  # contexts of 32, 48 and 64 columns
