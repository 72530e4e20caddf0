"""Whole fine-tuning runs with each tuning method: resumed bit for bit, opened, saved as adapters, refused."""

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import glm_jax
from glm_jax import methods
from glm_jax.cli import convert, evaluate, generate
from glm_jax.interop import FormatError, export, from_pretrained
from glm_jax.interop.adapter import fingerprint
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import read
from glm_jax.tasks.task import find
from glm_jax.training.metric_writer import read_metrics
from glm_jax.training.trainer import Interrupted
from glm_jax.tuning.dataset import make_dataset, to_batch
from glm_jax.tuning.losses import task_objective
from glm_jax.tuning.run import finetune
from tests.helpers.compiler_flags import fake_devices
from tests.helpers.crash_resume import assert_same_end, losses
from tests.helpers.paths import ROOT
from tests.helpers.tuning_runs import TOPICS, config

SETTINGS = {
    "full": {}, "bias": {}, "ia3": {}, "classifier": {"head": "classifier"}, "first_layers": {},
    "lora": {"lora__rank": 2, "lora__dropout": 0.1}, "p_tuning_v2": {"p_tuning_v2__length": 3},
    "prompt": {"prompt__length": 3}, "prompt_spell": {"prompt_spell__length": 3, "prompt_spell__init": "words"},
}  # fmt: skip


def tuned(place, method, *tasks, **changes):
    return config(place, *tasks, method=method, **SETTINGS[method] | changes)


def test_every_method_is_run():
    assert SETTINGS.keys() == methods.METHODS.keys()


def _methods(*names, now):
    """One parameter a method: those in `now` in the thorough tier, the others in the slow one."""
    marks = {name: pytest.mark.thorough if name in now else pytest.mark.slow for name in names}
    return [pytest.param(name, marks=mark) for name, mark in marks.items()]


@pytest.mark.parametrize("method", _methods(*SETTINGS, now=("lora", "p_tuning_v2", "first_layers")))
def test_a_run_trains_only_its_parameters_and_opens_again(place, tmp_path, method):
    settings = {"frozen_dtype": "bfloat16"} if method == "lora" else {}
    result = finetune(tuned(place, method, **settings), tmp_path / "run")
    assert 0 <= result["topics"]["accuracy"]["mean"] <= 100
    run, base = from_pretrained(tmp_path / "run"), from_pretrained(place / "pretrained")
    if method == "full":
        assert run.adapter is None
        return
    made = methods.method_of(run.config)
    trained, frozen = made.split(run.params)
    _, expected = made.split(made.add(base.params, base.model.config, jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, frozen, expected)
    again = from_pretrained(place / "pretrained", adapter=tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, dict(again.params), dict(run.params))
    assert again.adapter["method"] == method
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(trained))
    on_disk = (tmp_path / "run" / "adapter" / "adapter.safetensors").stat().st_size
    assert size <= on_disk < size + 4000
    same = glm_jax.fill(run, "ba de [MASK] go", max_new_tokens=3)[0].text
    assert glm_jax.fill(again, "ba de [MASK] go", max_new_tokens=3)[0].text == same


@pytest.mark.parametrize("method", _methods("lora", "p_tuning_v2", "first_layers", now=("lora",)))
def test_a_run_that_was_interrupted_goes_on_bitwise(place, tmp_path, method, monkeypatch):
    """Frozen parameters in bfloat16, micro batches and recomputed layers among the settings."""
    changes = {"frozen_dtype": "bfloat16", "grad_accumulation_steps": 2, "model__remat": "full"}
    finetune(tuned(place, method, **changes), tmp_path / "whole")

    def interrupt(self, step, values):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("glm_jax.training.metric_writer.MetricWriter.progress", interrupt)
    with pytest.raises(Interrupted):
        finetune(tuned(place, method, **changes), tmp_path / "parts")
    monkeypatch.undo()
    finetune(tuned(place, method, **changes), tmp_path / "parts")
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.thorough
def test_a_base_that_changed_is_refused_at_a_resume(place, tmp_path):
    finetune(tuned(place, "lora"), tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    other = from_pretrained(place / "pretrained")
    params = jax.tree.map(lambda a: a + 0.5, dict(other.params))
    export(glm_jax.interop.Pretrained(other.model, params, other.tokenizer), tmp_path / "other", "glm_jax")
    changed = tuned(place, "lora")
    changed.init_from = str(tmp_path / "other")
    with pytest.raises(ValueError, match=r"was trained on .*: set init_from to where that one lies"):
        finetune(changed, tmp_path / "run")
    with pytest.raises(FormatError, match=r"was trained on .*pretrained .*not on .*other"):
        from_pretrained(tmp_path / "other", adapter=tmp_path / "run")


@pytest.mark.parametrize("method", _methods("lora", "prompt", now=("lora",)))
def test_a_head_is_saved_with_the_adapter(place, tmp_path, method):
    finetune(tuned(place, method, head="classifier", pool="pad"), tmp_path / "head")
    run = from_pretrained(place / "pretrained", adapter=tmp_path / "head")
    assert "classifier" in run.params
    assert run.pool == "pad"


@pytest.mark.thorough
def test_lora_goes_out_merged_and_to_peft_and_back(place, tmp_path):
    made = tuned(place, "lora", lora__separate_query_key_value=True, lora__layers=(1,))
    finetune(made, tmp_path / "run")
    run, base = from_pretrained(tmp_path / "run"), from_pretrained(place / "pretrained")
    with pytest.raises(ValueError, match="has an adapter: export its merge"):
        export(run, tmp_path / "no", "hub")
    export(run.merge(), tmp_path / "hub", "hub")
    export(run, tmp_path / "peft", "peft")
    batch = jax.numpy.asarray([[5, 6, 7, 8, 9, 10, 11, 12]]), jax.numpy.zeros((1, 8), int)
    logits = lambda one: one.model.apply(  # noqa: E731
        {"params": one.model_params}, batch[0], batch[1], batch[1], jax.numpy.asarray([6])
    )
    expected = logits(run)
    assert float(abs(expected - logits(base)).max()) > 1e-3
    merged = from_pretrained(tmp_path / "hub", gelu="tanh")
    np.testing.assert_allclose(logits(merged), expected, atol=1e-5)
    np.testing.assert_allclose(logits(base.with_adapter(tmp_path / "peft")), expected, atol=1e-5)
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert settings["rank_pattern"] == {"query_key_value": 6}
    with pytest.raises(ValueError, match="peft exists: choose another folder"):
        base.save_adapter(tmp_path / "peft", methods.LoRA(), {})


@pytest.mark.thorough
def test_several_adapters_of_one_base(place, tmp_path):
    for name in ("a", "b"):
        made = tuned(place, "lora")
        made.seed = ord(name)
        finetune(made, tmp_path / name)
    base = from_pretrained(place / "pretrained")
    runs = [base.with_adapter(tmp_path / name) for name in ("a", "b")]
    table = base.params["word_embeddings"]["embedding"]
    assert all(run.params["word_embeddings"]["embedding"] is table for run in runs)
    assert fingerprint(runs[0].params) != fingerprint(base.params)
    with pytest.raises(FormatError, match=r"has the adapter .* already"):
        runs[0].with_adapter(tmp_path / "b")


@pytest.mark.thorough
def test_verbs_take_adapters(place, tmp_path, capsys):
    finetune(tuned(place, "lora"), tmp_path / "run")
    generate.main([
        "--checkpoint", str(place / "pretrained"), "--adapter", str(tmp_path / "run"), "--prompt", "ba [MASK] de",
        "--max-new-tokens", "3",
    ])  # fmt: skip
    convert.main([str(tmp_path / "run"), str(tmp_path / "merged"), "--merge", "--to", "glm_jax"])
    assert from_pretrained(tmp_path / "merged").adapter is None
    assert "wrote" in capsys.readouterr().out
    settings = {**TOPICS, "path": str(place / "{split}.jsonl")}
    (tmp_path / "topics.py").write_text(
        f"from glm_jax.tasks.task import from_settings\ntask = from_settings({settings!r})\n"
    )
    evaluate.main([
        "--checkpoint", str(place / "pretrained"), "--adapter", str(tmp_path / "run"), "--tasks",
        str(tmp_path / "topics.py"),
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "lorra"}, "unknown method 'lorra'; nearest: lora"),
        ({"method": "classifier"}, "method 'classifier' trains a head alone: set head = 'classifier'"),
        ({"pool": "last"}, "unknown pool 'last'"),
        ({"frozen_dtype": "int8"}, "unknown frozen_dtype 'int8'"),
    ],
)
def test_what_does_not_fit_is_refused(place, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        finetune(config(place, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.thorough
def test_damaged_adapters_are_named(place, tmp_path):
    finetune(tuned(place, "bias"), tmp_path / "run")
    base = from_pretrained(place / "pretrained")
    adapter = tmp_path / "run" / "adapter"
    with pytest.raises(FormatError, match="does not exist: give the folder of an adapter"):
        base.with_adapter(tmp_path / "nowhere")
    with pytest.raises(FormatError, match=r"holds no adapter: expected adapter\.json"):
        base.with_adapter(place)
    saved = json.loads((adapter / "adapter.json").read_text())
    for changes, message in (
        ({"version": 2}, "has version 2, but this glm_jax reads 1"),
        ({"method": "dora"}, "unknown method 'dora'"),
        ({"method": "ia3"}, "but the method ia3 has"),
        ({"format": "x"}, "does not describe an adapter"),
    ):
        (adapter / "adapter.json").write_text(json.dumps(saved | changes))
        with pytest.raises(FormatError, match=message):
            base.with_adapter(adapter)
    (adapter / "adapter.json").write_text("{")
    with pytest.raises(FormatError, match="cannot be read"):
        base.with_adapter(adapter)
    (adapter / "adapter.json").write_text(json.dumps(saved))
    (adapter / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(FormatError, match="truncated or no safetensors file"):
        base.with_adapter(adapter)


@pytest.mark.thorough
def test_what_a_run_logs_of_its_method(place, tmp_path, caplog):
    with caplog.at_level("INFO", logger="glm_jax"):
        finetune(tuned(place, "bias"), tmp_path / "run")
    assert "parameters train" in caplog.text
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")


def test_prompt_spell_needs_a_template(place, tmp_path):
    with pytest.raises(TaskError, match=r"prompt_spell.* puts its vectors into a template"):
        finetune(tuned(place, "prompt_spell", f"pairs:{place}"), tmp_path / "run")


@pytest.mark.parametrize("method", _methods("lora", "p_tuning_v2", "prompt", now=("prompt",)))
def test_written_answers_train_with_adapters_also_in_packed_rows(place, tmp_path, method):
    """Examples that share a row learn what those with rows of their own learn."""
    changes = {f"{method}__dropout": 0.0} if method != "prompt" else {}
    task = dataclasses.replace(find(f"pairs:{place}", str(place)), source_length=32, target_length=4)
    base = from_pretrained(place / "pretrained")
    made = methods.method_of(tuned(place, method, **changes).to_dict())
    params = made.add(base.params, base.model.config, jax.random.key(0))
    trained, frozen = made.split(jax.tree.map(lambda a: a + 0.01, params))
    objective = task_objective(base.model, choices=False, generation=True)
    results = []
    for packed_length in (None, 64):
        rows = make_dataset(
            task, read(task.source, "train", 6), base.tokenizer, base.model, packed_length=packed_length
        )
        arrays = {name: np.stack([rows[i][name] for i in range(len(rows))]) for name in rows[0]}
        batch = to_batch({name: jax.numpy.asarray(a) for name, a in arrays.items()} | {"index": None})
        results.append(jax.value_and_grad(lambda t: objective(made.join(t, frozen), batch)[0])(trained))  # noqa: B023
    (loss, grads), (expected, expected_grads) = results
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads, expected_grads)
    result = finetune(tuned(place, method, f"pairs:{place}", packed_length=96), tmp_path / "run")
    assert result  # decoded with the adapter


ON_A_MESH = """
import pathlib, pickle, sys
import jax
from glm_jax.tuning.run import finetune
config, folder = pickle.load(sys.stdin.buffer)
assert jax.device_count() == 8
finetune(config, folder)
"""


@pytest.mark.parametrize("method", _methods("lora", "p_tuning_v2", "first_layers", "ia3", now=("lora",)))
def test_a_mesh_of_eight_changes_nothing(place, tmp_path, method):
    """2 x 2 x 2: the losses of one device; what is frozen has the bits of the base."""
    made = tuned(place, method, **({"lora__dropout": 0.0} if method == "lora" else {}))
    if method == "p_tuning_v2":
        made.p_tuning_v2.dropout = 0.0
    made.train_duration = "4 steps"
    finetune(made, tmp_path / "one")
    spread = made.copy_and_resolve_references()
    spread.mesh.data, spread.mesh.fsdp, spread.mesh.tensor = 2, 2, 2
    given = pickle.dumps((spread, str(tmp_path / "eight")))
    command = [sys.executable, "-c", ON_A_MESH]
    done = subprocess.run(command, input=given, capture_output=True, cwd=ROOT, env=fake_devices(8))
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    ours, theirs = losses(tmp_path / "one"), losses(tmp_path / "eight")
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-4)
    run, base = from_pretrained(tmp_path / "eight"), from_pretrained(place / "pretrained")
    rule = methods.method_of(run.config)
    _, frozen = rule.split(run.params)
    _, expected = rule.split(rule.add(base.params, base.model.config, jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, frozen, expected)
