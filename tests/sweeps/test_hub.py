"""Models of the hub in a sweep: BERT, RoBERTa, T5 and BART, tiny and made here, on a task of each kind."""

import json

import numpy as np
import pytest

from glm_jax.reports.page import write_report
from glm_jax.sweeps import hub
from glm_jax.sweeps.run import check, sweep
from glm_jax.sweeps.space import SweepError
from glm_jax.tasks.errors import TaskError
from tests.helpers import hub_models, sweep_runs, tiny_run, tuning_runs


def test_without_its_packages_the_extra_is_named(place, monkeypatch):
    monkeypatch.setattr("glm_jax.sweeps.space.missing_packages", lambda: "torch")
    config = sweep_runs.config(place, candidates=({"name": "RoBERTa", "hub": "roberta-base"},), ensembles={})
    with pytest.raises(SweepError, match=r"needs torch: pip install 'glm_jax\[baselines\]'"):
        check(config)


def test_a_key_that_a_hub_model_does_not_read_is_refused(place, monkeypatch):
    monkeypatch.setattr("glm_jax.sweeps.space.missing_packages", lambda: None)
    candidate = {"name": "RoBERTa", "hub": "roberta-base", "method": "lora"}
    with pytest.raises(SweepError, match="a hub model does not read method; it reads tasks"):
        check(sweep_runs.config(place, candidates=(candidate,), ensembles={}))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    for package in ("torch", "transformers"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("hub")
    texts = [" ".join(np.random.default_rng(i).permutation(tiny_run.WORDS)) for i in range(20)]
    return {kind: hub_models.make(kind, folder, texts) for kind in hub_models.KINDS}


@pytest.mark.thorough
def test_hub_models_run_through_sweep_and_report(place, models):
    rates = {"space": {"schedule.peak_lr": (1e-2, 3e-3)}}
    candidates = [{"name": kind, "hub": path, **(rates if kind == "bert" else {})} for kind, path in models.items()]
    config = sweep_runs.config(place, candidates=(*candidates, {"name": "GLM"}), space={}, ensembles={})
    config.base.train_duration = "4 epochs"
    folder = place / "hub"
    results = sweep(config, folder)
    rows = {row["name"]: row for row in results["rows"]}
    assert [len(row["runs"]) for row in rows.values()] == [2] * 5
    assert rows["bert"]["trials"] == {"complete": 2}
    for name, row in rows.items():
        assert 0 <= row["mean"] <= 100
        assert row["trained_parameters"] > 0
        assert all(run["seconds"] > 0 for run in row["runs"]), name
    text = write_report(folder).read_text()
    assert all(kind in text for kind in hub_models.KINDS)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_model_that_writes_learns_pairs(place, models, tmp_path, kind):
    config = tuning_runs.config(place, f"pairs:{place}", train_duration="60 epochs", eval_every="30 epochs")
    config.schedule.peak_lr = 1e-2
    hub.train_hub(config, tmp_path, models[kind])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 0.5
    hub.score_hub(config, tmp_path, "validation", tmp_path / "report")
    (result,) = json.loads((tmp_path / "report" / "results.json").read_text())
    assert result["examples"] == 10
    rows = (tmp_path / "report").glob("predictions-*.jsonl")
    assert all(json.loads(line)["reference"] for path in rows for line in path.read_text().splitlines())


@pytest.mark.thorough
def test_a_run_is_the_same_again_and_the_best_is_kept(place, models, tmp_path):
    config = tuning_runs.config(place, train_duration="6 epochs")
    scores = []
    for name in ("first", "second"):
        hub.train_hub(config, tmp_path / name, models["roberta"], lambda step, score: scores.append(score))
        hub.score_hub(config, tmp_path / name, "validation", tmp_path / name / "report")
    assert scores[:6] == scores[6:]
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("first", "second")]
    kept = [[{k: v for k, v in json.loads(line).items() if "seconds" not in k} for line in log] for log in logs]
    assert kept[0] == kept[1]
    assert json.loads((tmp_path / "first/report/results.json").read_text())[0]["accuracy"] == max(scores)


@pytest.mark.thorough
def test_an_encoder_does_not_write(place, models, tmp_path):
    with pytest.raises(TaskError, match=r"bert classifies, but .* has no fixed classes: take T5 or BART"):
        hub.train_hub(tuning_runs.config(place, f"pairs:{place}"), tmp_path, models["bert"])
