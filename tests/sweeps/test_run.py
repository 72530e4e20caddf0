"""Whole sweeps of a tiny model: what they leave, what is never repeated, and that the test comes last."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from glm_jax.reports.page import write_report
from glm_jax.sweeps import run as room
from glm_jax.sweeps.folder import SweepFolder
from glm_jax.sweeps.run import sweep
from glm_jax.sweeps.space import SweepError, Trial
from glm_jax.sweeps.status import format_status
from glm_jax.training.metric_writer import read_metrics
from tests.helpers import sweep_runs
from tests.helpers.paths import ROOT


def numbers(results):
    """What must not depend on when and how often a sweep was stopped."""
    return [
        (row["name"], row.get("changes"), row["mean"], [(run["seed"], run["numbers"]) for run in row["runs"]])
        for row in results["rows"]
    ]


@pytest.mark.thorough
def test_a_sweep_leaves_what_it_promises(finished):
    folder, results = finished
    assert json.loads((folder / "results.json").read_text()) == results
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == ["is", "first", "LoRA", "too warm", "majority", "TF-IDF", "both prompts"]
    assert [len(row["runs"]) for row in rows.values()] == [2, 2, 2, 0, 1, 1, 2]
    assert "warmup of 6 steps is more than half" in rows["too warm"]["error"]
    assert rows["is"]["trials"] == {"complete": 2}
    assert rows["LoRA"]["trained_parameters"] < rows["is"]["trained_parameters"] == rows["is"]["parameters"]
    for row in rows.values():
        for run_ in row["runs"]:
            saved = json.loads((folder / run_["folder"] / "report" / "results.json").read_text())
            assert saved[0]["accuracy"] == run_["value"]
            assert (saved[0]["split"], saved[0]["examples"]) == ("test", 24)
    assert results["metric"] == "accuracy"


@pytest.mark.thorough
def test_the_best_on_validation_is_chosen_and_the_test_comes_after(finished):
    folder, results = finished
    selection = json.loads((folder / "selection.json").read_text())
    for name, choice in selection.items():
        trials = [t for t in results["trials"] if t["candidate"] == name and t["changes"]["seed"] == 0]
        assert choice["validation"] == max(t["score"] for t in trials)
        assert choice["changes"] in [t["changes"] for t in trials if t["score"] == choice["validation"]]
    tested = [path.stat().st_mtime for path in folder.glob("trials/*/report/results.json")]
    assert min(tested) > max(choice["selected_at"] for choice in selection.values())
    assert min(tested) > max(trial["ended_at"] for trial in results["trials"])
    kept = {path.parent.name for path in folder.glob("trials/*/checkpoints")}
    assert {
        run_["folder"].split("/")[1] for row in results["rows"] if row["kind"] == "trained" for run_ in row["runs"]
    } <= kept
    assert len(kept) < len(list(folder.glob("trials/*")))


@pytest.mark.thorough
def test_trials_that_differ_in_rate_or_seed_compile_once(finished):
    """What the first trial of a shape compiles, others find in the cache."""
    _, results = finished
    compiled = {}
    for trial in sorted(results["trials"], key=lambda trial: trial["ended_at"]):
        if trial["status"] == "complete":
            compiled.setdefault(trial["candidate"], []).append(trial["compiled"])
    assert compiled["is"][0] > 0
    assert [count for counts in compiled.values() for count in counts[1:]] == [0] * 4


@pytest.mark.thorough
def test_an_ensemble_averages_probabilities(finished):
    folder, results = finished
    rows = {row["name"]: row for row in results["rows"]}

    def predictions(name):
        path = folder / rows[name]["runs"][0]["folder"] / "report" / "predictions-topics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    for first, second, both in zip(predictions("is"), predictions("first"), predictions("both prompts"), strict=True):
        scores = [np.array(list(row["scores"].values())) for row in (first, second)]
        expected = np.mean([s - np.log(np.exp(s).sum()) for s in scores], axis=0)
        np.testing.assert_allclose(list(both["scores"].values()), expected, atol=1e-9)


@pytest.mark.thorough
def test_a_complete_sweep_returns_its_results_at_once(finished, place, monkeypatch):
    monkeypatch.setattr(room, "_stages", None)
    assert sweep(sweep_runs.config(place), finished[0]) == finished[1]
    assert "complete" in format_status(finished[0])


@pytest.mark.thorough
def test_a_complete_sweep_takes_more_seeds(finished, place, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "more")
    ended = [
        path for path in folder.glob("trials/*/trial.json") if json.loads(path.read_text())["status"] == "complete"
    ]
    before = {path: path.read_bytes() for path in [folder / "selection.json", *ended]}
    results = sweep(sweep_runs.config(place, seeds=(0, 1, 2)), folder)
    assert all(path.read_bytes() == content for path, content in before.items())
    old = {row["name"]: row for row in finished[1]["rows"]}
    for row in results["rows"]:
        if row["kind"] == "trained" and row["runs"]:
            assert [run_["seed"] for run_ in row["runs"]] == [0, 1, 2]
            assert row["runs"][:2] == old[row["name"]]["runs"]
    assert sweep(sweep_runs.config(place, seeds=(0, 1, 2)), folder) == results


@pytest.mark.thorough
def test_trials_that_fall_behind_are_pruned_and_never_chosen(place, tmp_path):
    """The median rule takes three finished rivals first; the slow rates come after them."""
    rates = (3e-3, 2.9e-3, 2.8e-3, 1e-6, 2e-6)
    candidates = ({"name": "is", "prompt": "is", "space": {"schedule.peak_lr": rates}},)
    options = {"candidates": candidates, "ensembles": {}, "space": {}, "prune": True, "seeds": (0,), "workers": 1}
    results = sweep(sweep_runs.config(place, **options), tmp_path / "pruned")
    status = {trial["changes"]["schedule.peak_lr"]: trial["status"] for trial in results["trials"]}
    assert [status[rate] for rate in rates[:3]] == ["complete"] * 3
    assert "pruned" in (status[1e-6], status[2e-6])
    assert results["rows"][0]["changes"]["schedule.peak_lr"] in rates[:3]
    steps = {
        trial["changes"]["schedule.peak_lr"]: read_metrics(
            SweepFolder(tmp_path / "pruned").trial(Trial("is", trial["changes"])) / "metrics.jsonl"
        )[-1]["step"]
        for trial in results["trials"]
    }
    pruned = [rate for rate in rates if status[rate] == "pruned"]
    assert all(steps[rate] < steps[rates[0]] for rate in pruned)


@pytest.mark.thorough
def test_another_sweep_is_refused(finished, place, tmp_path):
    with pytest.raises(SweepError, match=r"belongs to another sweep .*seeds: .0, 1. there, .0, 2. here"):
        sweep(sweep_runs.config(place, seeds=(0, 2)), finished[0])
    with pytest.raises(SweepError, match="is the folder of a run"):
        sweep(sweep_runs.config(place), place / "pretrained")
    with pytest.raises(SweepError, match="is a file"):
        sweep(sweep_runs.config(place), place / "train.jsonl")
    with pytest.raises(SweepError, match="is no folder of a sweep"):
        format_status(tmp_path)


@pytest.mark.slow
def test_a_sweep_killed_at_random_moments_ends_as_one_that_was_not(finished, place):
    kill_and_compare(finished, place, place / "killed", kills=3)


def config_file(place):
    file = place / "sweep.py"
    file.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import pathlib\nfrom tests.helpers import sweep_runs\n"
        f"def get_config():\n    return sweep_runs.config(pathlib.Path({str(place)!r}))\n"
    )
    return file


def kill_and_compare(finished, place, folder, kills):
    """Kills a sweep's parent so often; no trial that has ended runs again, and the results are those of `finished`."""
    file, rng = config_file(place), random.Random(kills)
    command = [sys.executable, "-m", "glm_jax", "sweep", f"--config={file}", f"--workdir={folder}"]
    ended = {}
    for _ in range(kills):
        before = len(SweepFolder(folder).records())
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(SweepFolder(folder).records()) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for record in SweepFolder(folder).records():
            if record["status"] == "complete":
                assert ended.setdefault(json.dumps(record["changes"]) + record["candidate"], record) == record
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    results = SweepFolder(folder).results()
    assert numbers(results) == numbers(finished[1])
    for record in results["trials"]:
        key = json.dumps(record["changes"]) + record["candidate"]
        assert ended.get(key, record) == record


@pytest.mark.thorough
def test_a_metric_that_no_trial_reports_is_named_with_those_that_are(place):
    candidates = ({"name": "is", "prompt": "is", "schedule.peak_lr": 1e-3},)
    config = sweep_runs.config(place, candidates=candidates, ensembles={}, metric="topics_f1")
    with pytest.raises(SweepError, match="metric 'topics_f1' is not reported; known: score, topics_accuracy"):
        sweep(config, place / "metric")


@pytest.mark.thorough
def test_machines_that_share_a_sweep_end_with_its_results(finished, place):
    folder, file = place / "shared", config_file(place)
    command = [sys.executable, "-m", "glm_jax", "sweep", f"--config={file}", f"--workdir={folder}"]
    machines = [
        subprocess.Popen(
            [*command, f"--shard={i}/2"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    outputs = [machine.communicate(timeout=300) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs[0][1] + outputs[1][1]
    assert outputs[0][0] == outputs[1][0]
    assert numbers(SweepFolder(folder).results()) == numbers(finished[1])
    shares = [errors.count(" -> validation") for _, errors in outputs]
    assert sum(shares) == 7
    assert min(shares) > 0


@pytest.mark.thorough
def test_ctrl_c_saves_trials_and_the_same_command_goes_on(place):
    """SIGINT to the parent alone, as a terminal's other processes are in sessions of their own."""
    folder, file = place / "interrupted", place / "interrupted.py"
    file.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import pathlib\nfrom tests.helpers import sweep_runs\n"
        f"def get_config():\n    config = sweep_runs.config(pathlib.Path({str(place)!r}), seeds=(0,))\n"
        "    config.base.train_duration = '200 epochs'\n    config.candidates = ({'name': 'is', 'prompt': 'is'},)\n"
        "    config.ensembles = {}\n    return config\n"
    )
    command = [sys.executable, "-m", "glm_jax", "sweep", f"--config={file}", f"--workdir={folder}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not any(map(read_metrics, folder.glob("trials/*/metrics.jsonl"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "running:" in format_status(folder)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 130, output
    assert "the same command goes on from there" in output
    assert list(folder.glob("trials/*/checkpoints/[0-9]*")), output
    assert not list(folder.glob("trials/*/lock.json"))


@pytest.mark.thorough
def test_a_report_reads_without_a_network(finished, tmp_path):
    page = write_report(finished[0], tmp_path)
    text = page.read_text()
    assert not [word for word in ("http://", "https://", "<link", "src=") if word in text]
    for name in ("is", "first", "LoRA", "too warm", "majority", "TF-IDF", "both prompts"):
        assert name in text
    assert text.count("<svg") >= 6
    assert "warmup of 6 steps is more than half" in text
    assert text.count("</svg>") == text.count("<svg")
    markdown = (tmp_path / "report.md").read_text()
    mean = next(row["mean"] for row in finished[1]["rows"] if row["name"] == "LoRA")
    assert f"| LoRA | {mean:.2f} ±" in markdown


@pytest.mark.thorough
def test_a_report_of_what_is_no_complete_sweep_is_refused(tmp_path, place):
    with pytest.raises(SweepError, match="is no folder of a sweep"):
        write_report(place / "pretrained")
    folder = SweepFolder(tmp_path / "new")
    folder.claim(sweep_runs.config(place))
    with pytest.raises(SweepError, match="is not complete"):
        write_report(folder.path)


@pytest.mark.slow
def test_ten_kills(finished, place):
    kill_and_compare(finished, place, place / "killed-10", kills=10)
