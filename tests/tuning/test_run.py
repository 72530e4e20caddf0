"""Whole fine-tuning runs of a tiny model: all kinds of tasks, resumed bit for bit, and what is refused."""

import dataclasses
import gc
import json
import os
import random
import signal
import subprocess
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax import config as defaults
from glm_jax.cli import evaluate
from glm_jax.evaluation.cloze import cloze_loss
from glm_jax.evaluation.results import Options, Result
from glm_jax.evaluation.run import evaluate_task
from glm_jax.interop import from_pretrained
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import read
from glm_jax.tasks.task import find
from glm_jax.training.early_stopping import EarlyStopping
from glm_jax.training.metric_writer import read_metrics
from glm_jax.training.pretraining import PretrainingTask
from glm_jax.training.trainer import Interrupted, train_task
from glm_jax.training.workdir import RunFolder, restore_model
from glm_jax.tuning import run as room
from glm_jax.tuning.dataset import best_fit, make_dataset, to_batch
from glm_jax.tuning.losses import task_objective
from glm_jax.tuning.run import finetune
from glm_jax.tuning.task import tasks_of
from glm_jax.tuning.train import train
from tests.helpers.crash_resume import ROOT, assert_same_end, kill_at, losses
from tests.helpers.tuning_runs import TOPICS, config


@pytest.mark.thorough
def test_the_source_parameters_are_not_kept_through_the_run(place):
    config_ = config(place, train_duration="2 steps", eval_every="0 steps")
    task = room.open_checkpoint(config_, RunFolder(place / "freed"))
    sources = [weakref.ref(leaf) for leaf in jax.tree.leaves(task._params)]
    alive = {}

    def look(step, metrics):
        gc.collect()
        alive[step] = sum(source() is not None for source in sources)

    train_task(task, place / "freed", on_log=look)
    assert alive[1] == 0 < len(sources)


@pytest.fixture(scope="module")
def finished(place):
    return place / "whole", finetune(config(place), str(place / "whole"))


@pytest.mark.thorough
def test_a_run_leaves_its_best_checkpoint_and_its_test(finished):
    folder, summary = finished
    assert set(losses(folder)) == set(range(1, 7))
    assert summary["topics"]["split"] == "validation"
    assert summary["topics"]["examples"] == 10
    value = summary["topics"]["accuracy"]["mean"]
    found = [line["validation_score"] for line in read_metrics(folder / "metrics.jsonl") if "validation_score" in line]
    assert value == pytest.approx(max(found))
    assert json.loads((folder / "test.json").read_text()) == summary
    assert len((folder / "test" / "predictions-topics.jsonl").read_text().splitlines()) == 10
    assert "topics, validation, 10 examples: accuracy" in room.format_summary(summary)
    _, best = restore_model(RunFolder(folder), "best")
    assert best.step == from_pretrained(folder).metadata["iteration"] == from_pretrained(folder).step
    _, latest = restore_model(RunFolder(folder), "latest")
    assert latest.step == 6 == from_pretrained(folder, step=6).metadata["iteration"]
    for step, expected in ((None, best), ("latest", latest), ("6", latest), ("best", best)):
        jax.tree.map(np.testing.assert_array_equal, from_pretrained(folder, step=step).params, expected.state)


def test_a_complete_run_returns_its_test_at_once(finished, place, monkeypatch):
    monkeypatch.setattr(room, "_test", None)
    assert train(config(place), finished[0]) == finished[1]


@pytest.mark.thorough
def test_ctrl_c_and_the_same_call_goes_on_bitwise(finished, place, monkeypatch):
    folder = place / "interrupted"

    def interrupt(self, step, values):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("glm_jax.training.metric_writer.MetricWriter.progress", interrupt)
    with pytest.raises(Interrupted):
        finetune(config(place), str(folder))
    monkeypatch.undo()
    # A run that has begun needs its own folder only.
    moved = place / "elsewhere"
    (place / "pretrained").rename(moved)
    try:
        assert finetune(config(place), str(folder)) == finished[1]
    finally:
        moved.rename(place / "pretrained")
    assert_same_end(folder, finished[0])


@pytest.mark.thorough
def test_kill_9_and_resume_is_bitwise(finished, place):
    """Killed in the second of two epochs, whose validation is still to come; the log is that of the whole run."""
    folder, file = place / "killed", place / "config.py"
    file.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import pathlib\nfrom tests.tuning import test_run\n"
        f"def get_config():\n    return test_run.config(pathlib.Path({str(place)!r}))\n"
    )
    command = [sys.executable, "-m", "glm_jax", "finetune", f"--config={file}", f"--workdir={folder}"]
    kill_at(command, folder, 4)
    assert not (folder / "result.json").exists()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert_same_end(folder, finished[0])
    logs = [read_metrics(run / "metrics.jsonl") for run in (folder, finished[0])]
    measured = ("second", "stall", "compilations")  # by this process, of this machine
    ours, theirs = (
        [{k: v for k, v in line.items() if not any(m in k for m in measured)} for line in log] for log in logs
    )
    assert ours == theirs
    for name in ("test.json", "test/predictions-topics.jsonl"):
        assert (folder / name).read_text() == (finished[0] / name).read_text()


@pytest.mark.thorough
def test_tasks_that_write_beside_tasks_that_choose(place):
    tasks = ({**TOPICS, "path": str(place / "{split}.jsonl")}, "blank:0.4")
    summary = finetune(
        config(place, *tasks, weights=(2.0, 1.0), train_duration="2 steps", seeds=(2,), eval_every="2 steps"),
        str(place / "mixed"),
    )
    assert set(summary) == {"topics", "blank_0.4"}
    test = place / "mixed" / "seed-2" / "test"
    assert len((test / "hypotheses-blank_0.4.txt").read_text().splitlines()) == 10
    references = (test / "references-blank_0.4.txt").read_text()
    assert references == (place / "validation.txt").read_text()


def test_seeds_are_averaged(tmp_path):
    runs = [[Result("t", "test", 7, {"accuracy": value}, [])] for value in (1.0, 3.0, 8.0)]
    summary = room._summary(tmp_path, runs)
    numbers = {"mean": 4.0, "deviation": pytest.approx(13**0.5), "values": [1.0, 3.0, 8.0]}
    assert summary == {"t": {"split": "test", "examples": 7, "accuracy": numbers}}
    assert room.format_summary(summary) == "t, test, 7 examples: accuracy 4.00 ± 3.61 (3 seeds)"


@pytest.mark.thorough
def test_generation_does_not_depend_on_the_batch(place):
    loaded = from_pretrained(place / "pretrained")
    model = (loaded.model, loaded.params, loaded.tokenizer)
    task = find(f"pairs:{place}", str(place))
    task = type(task)(task.name, task.source, task.layout, 32, 4, beams=2)
    found = [evaluate_task(*model, task, Options(batch_size=size, limit=5)).predictions for size in (1, 4)]
    assert found[0] == found[1]
    assert {*found[0][0]} == {"id", "split", "prediction", "reference"}


def _batch(task, loaded, packed_length=None):
    examples = read(task.source, "train", 6)
    rows = make_dataset(task, examples, loaded.tokenizer, loaded.model, packed_length=packed_length)
    numbers = range(len(rows))
    arrays = {name: np.stack([rows[i][name] for i in numbers]) for name in rows[0]}
    return to_batch({name: jnp.asarray(array) for name, array in arrays.items()} | {"index": jnp.asarray(numbers)})


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.thorough
def test_the_loss_of_candidates_is_that_of_their_scores(place, multi):
    """Against the scores that evaluation gives, on single tokens and on answers beside each other."""
    words = {"0": " ba de fi", "1": " go"} if multi else TOPICS["verbalizer"]
    (task,) = tasks_of(config(place, {**TOPICS, "verbalizer": words, "path": str(place / "{split}.jsonl")}))
    loaded = from_pretrained(place / "pretrained")
    batch = _batch(task, loaded)
    objective = task_objective(loaded.model)
    total, sums = objective(loaded.params, batch)
    options = Options(split="train", limit=6)
    predictions = evaluate_task(loaded.model, loaded.params, loaded.tokenizer, task, options).predictions
    scores = np.array([list(p["scores"].values()) for p in predictions], np.float32)
    expected = cloze_loss(jnp.asarray(scores), batch.labels, jnp.ones(scores.shape))
    np.testing.assert_allclose(total / 6, expected, rtol=1e-5)
    assert sums.weight.sum() == 6


@pytest.mark.thorough
def test_written_answers_are_smoothed_and_averaged_by_token(place):
    loaded = from_pretrained(place / "pretrained")
    task = find(f"pairs:{place}", str(place))
    task = type(task)(task.name, task.source, task.layout, 32, 4)
    batch = _batch(task, loaded)
    objective = task_objective(loaded.model, label_smoothing=0.2, choices=False, generation=True)
    total, sums = objective(loaded.params, batch)
    logits = loaded.model.apply({"params": loaded.params}, **batch.model_inputs())
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    right = np.take_along_axis(log_probs, np.asarray(batch.target_ids)[..., None], 2)[..., 0]
    expected = -((0.8 * right + 0.2 * log_probs.mean(2)) * batch.target_weights).sum()
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert sums.weight.sum() == batch.target_weights.sum() > 6


@pytest.mark.parametrize("kind", ["pairs", "blanks"])
@pytest.mark.thorough
def test_examples_that_share_a_row_are_learned_as_if_each_had_its_own(place, kind):
    """Loss and gradients, of few full rows and of many that are mostly padding."""
    loaded = from_pretrained(place / "pretrained")
    task = find("blank:0.4" if kind == "blanks" else f"pairs:{place}", str(place))
    if kind == "pairs":
        task = dataclasses.replace(task, source_length=32, target_length=4)
    apart, together = _batch(task, loaded), _batch(task, loaded, packed_length=64)
    assert together.index.size < 4 < apart.index.size == 6
    assert apart.segment_ids is None
    objective = task_objective(loaded.model, choices=False, generation=True)
    learned = jax.value_and_grad(objective, has_aux=True)
    ((loss, sums), grads), ((expected, of_all), expected_grads) = (
        learned(loaded.params, batch) for batch in (together, apart)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert sums.weight.sum() == of_all.weight.sum() > 6
    assert sums.raw_tokens == of_all.raw_tokens
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads, expected_grads)


def test_which_examples_share_a_row():
    rng = random.Random(0)
    lengths = [rng.randint(20, 120) for _ in range(2000)]
    rows = best_fit(lengths, 256)
    assert sorted(i for row in rows for i in row) == list(range(2000))
    filled = [sum(lengths[i] for i in row) for row in rows]
    assert max(filled) <= 256
    assert sum(filled) / 256 / len(rows) > 0.98
    with pytest.raises(TaskError, match="an example of 120 tokens does not fit packed_length 119"):
        best_fit([7, 120], 119)


@pytest.mark.thorough
def test_only_written_answers_share_rows(place):
    with pytest.raises(ValueError, match="packed_length 64: examples of topics are scored, not written"):
        finetune(config(place, packed_length=64), str(place / "refused"))
    summary = finetune(
        config(place, "blank:0.4", packed_length=128, batch_size=2, train_duration="2 steps", eval_every="2 steps"),
        str(place / "packed"),
    )
    assert summary["blank_0.4"]["examples"] == 10


@pytest.mark.thorough
def test_a_classifier_on_the_first_token(place, monkeypatch):
    changes = {"head": "classifier", "train_duration": "2 steps", "eval_every": "2 steps"}
    folder = place / "classifier"
    summary = finetune(config(place, **changes), str(folder))
    assert summary["topics"]["examples"] == 10
    head = from_pretrained(folder).params["classifier"]
    assert head["output"]["kernel"].shape == (32, 2)
    assert not np.array_equal(head["output"]["bias"], np.zeros(2))

    def evaluated(*more):
        out = str(folder / "evaluation")
        task.write_text(f"task = { ({**TOPICS, 'path': str(place / '{split}.jsonl')} | dict(more))!r}")
        evaluate.main(["--checkpoint", str(folder), "--tasks", str(task), "--out", out, *flags])
        return json.loads((folder / "evaluation" / "results.json").read_text())

    task, flags = place / "topics.py", ["--baselines"]
    first, *others = evaluated()
    assert first["accuracy"] == pytest.approx(summary["topics"]["accuracy"]["mean"])
    assert [row["task"] for row in others] == ["topics, majority", "topics, TF-IDF"]
    with pytest.raises(SystemExit, match="classifier has 2 classes, but topics has 3"):
        evaluated(("verbalizer", {"0": " ba", "1": " de", "2": " fi"}))
    flags = ["--head", "cloze"]
    assert evaluated(("verbalizer", {"0": " ba", "1": " de", "2": " fi"}))[0]["examples"] == 10


def test_patience_counts_evaluations_without_a_better_score():
    patience = EarlyStopping(2, ("score", "max"))
    for value, over in ((1.0, False), (1.0, False), (2.0, False), (1.9, False), (float("nan"), True)):
        patience.update({"score": value})
        assert patience.over is over
    again = EarlyStopping(2, ("score", "max"))
    again.set_state(json.loads(json.dumps(patience.get_state())))
    assert again.over
    assert EarlyStopping(None, ("loss", "min")).get_state() == {}


@pytest.mark.slow
def test_patience_ends_a_run(place):
    changes = {"patience": 1, "train_duration": "40 steps", "eval_every": "1 steps", "log_every": "100 steps"}
    config_ = config(place, **changes)
    config_.schedule.peak_lr = 0.0  # nothing becomes better
    folder = place / "patient"
    finetune(config_, str(folder))
    assert json.loads((folder / "result.json").read_text())["step"] == 2
    before = from_pretrained(folder).checksum
    finetune(config_, str(folder))  # does not go on
    assert from_pretrained(folder).checksum == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "crossentropy"}, "unknown loss 'crossentropy'; known: cross_entropy"),
        ({"head": "cls"}, "unknown head 'cls'"),
        ({"tasks": ()}, "tasks is empty"),
        ({"head": "classifier", "loss": "hinge"}, "loss 'hinge' is of candidates"),
        ({"weights": (1.0, 2.0)}, "2 weights for 1 tasks"),
        ({"few_shot": 1000}, "few_shot 1000 of 24 examples"),
        ({"few_shot": 0}, "few_shot 0"),
        ({"seeds": (1, 1)}, "seeds .* must be different"),
        ({"patience": 0}, "patience 0"),
        ({"validation_split": "dev"}, "there is no file .*dev.jsonl"),
        ({"init_from": "/no/such/run"}, "/no/such/run"),
        ({"tasks": ("blank:1.5",)}, "write blank:RATIO"),
        ({"tasks": ("blank:0.4",), "head": "classifier"}, "no fixed classes"),
    ],
)
def test_what_cannot_run_is_refused(place, tmp_path, changes, message):
    with pytest.raises((ValueError, TaskError), match=message):
        finetune(config(place, **changes), str(tmp_path / "run"))
    assert not list(tmp_path.glob("run/checkpoints/[0-9]*"))


def test_a_config_of_the_other_verb_is_named(tmp_path):
    with pytest.raises(ValueError, match="this config is for pretraining: take one of configs/finetune/"):
        finetune(defaults.pretrain(), str(tmp_path / "run"))
    with pytest.raises(ValueError, match="this config is for fine-tuning: take one of configs/pretrain/"):
        train_task(PretrainingTask(defaults.finetune()), str(tmp_path / "run"))


def test_the_sizes_of_the_model_are_the_checkpoints(place, tmp_path):
    config_ = config(place)
    with config_.model.ignore_type():
        config_.model.num_layers = 5
    with pytest.raises(ValueError, match=r"model\.num_layers is the checkpoint's"):
        finetune(config_, str(tmp_path / "run"))


def test_a_label_outside_the_verbalizer_names_its_example(place, tmp_path):
    path = tmp_path / "{split}.jsonl"
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text('{"text": "ba", "label": 0}\n{"text": "de", "label": 7}\n')
    with pytest.raises(TaskError, match=r"example train-2: label 7 is not in the verbalizer, which knows 0, 1"):
        finetune(config(place, {**TOPICS, "path": str(path)}), str(tmp_path / "run"))


def test_a_validation_split_without_labels_is_refused(place, tmp_path):
    for split, row in (("train", {"text": "ba", "label": 0}), ("validation", {"text": "ba", "label": None})):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(TaskError, match="topics: example validation-1 has no label; name a labelled validation_split"):
        finetune(config(place, {**TOPICS, "path": str(tmp_path / "{split}.jsonl")}), str(tmp_path / "run"))


def test_a_text_to_fill_that_is_longer_than_the_model_is_named(place, tmp_path):
    for split in ("train", "valid"):
        (tmp_path / f"{split}.txt").write_text("ba de fi\n" + "ba " * 500 + "\n")
    config_ = config(place, "blank:0.4")
    config_.data.data_dir = str(tmp_path)
    with pytest.raises(TaskError, match=r"example train-1: position_ids reach from 0 to \d+, but the table holds"):
        finetune(config_, str(tmp_path / "run"))
