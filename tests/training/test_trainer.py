"""Whole runs: they learn, they stop and go on bit for bit, and they refuse what cannot work."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from glm_jax import config as config_lib
from glm_jax.data.errors import DataError
from glm_jax.decoding import fill
from glm_jax.distributed import processes
from glm_jax.interop import from_pretrained
from glm_jax.training import samples
from glm_jax.training.metric_writer import read_metrics
from glm_jax.training.metrics import NonFiniteError
from glm_jax.training.run_lock import LockError, RunLock
from glm_jax.training.trainer import Interrupted
from glm_jax.training.workdir import RunFolder, RunFolderError, restore_model
from glm_jax.tuning import train as train_module
from glm_jax.tuning.train import train
from tests.helpers import tiny_run
from tests.helpers.crash_resume import ROOT, assert_same_end, kill_at, losses


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    tiny_run.write_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def finished(corpus):
    """A run of 12 steps from start to end, and its folder."""
    result = train(tiny_run.config(corpus), str(corpus / "finished"), profile="steps=3:4")
    return corpus / "finished", result


def test_a_run_leaves_what_it_promises(finished):
    folder, result = finished
    assert set(losses(folder)) == set(range(1, 13))
    assert result["validation_loss"] < 6
    logged = read_metrics(folder / "metrics.jsonl")[0]
    assert logged["mfu"] is None  # nobody knows the peak of this CPU
    assert logged["step_seconds_p50"] <= logged["step_seconds_p99"]
    assert result["unigram_baseline"] > result["bigram_baseline"] > 0
    assert json.loads((folder / "result.json").read_text()) == pytest.approx(result)
    assert (folder / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert list((folder / "profile").rglob("*.xplane.pb"))
    assert "**[" in (folder / "samples.md").read_text()
    assert list((folder / "tensorboard").iterdir())
    assert json.loads((folder / "config.json").read_text())["batch_size"] == 8


def test_a_trained_model_fills_blanks(finished):
    run = from_pretrained(finished[0])
    (filled,) = fill(run, "ba de [MASK] fi ba.", max_new_tokens=4)
    assert len(filled.answers) == 1
    assert filled.text.startswith("ba de")


def test_a_complete_run_is_not_trained_again(finished, corpus):
    folder, result = finished
    before = (folder / "metrics.jsonl").read_text()
    began = time.monotonic()
    assert train(tiny_run.config(corpus), str(folder)) == pytest.approx(result)
    assert time.monotonic() - began < 2  # nothing is opened or compiled
    assert (folder / "metrics.jsonl").read_text() == before


@pytest.mark.thorough
def test_ctrl_c_saves_and_the_same_command_goes_on(finished, corpus, monkeypatch):
    folder = corpus / "interrupted"
    progress = "glm_jax.training.metric_writer.MetricWriter.progress"

    def interrupt(self, step, values):
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(progress, interrupt)
    logged = {}
    with pytest.raises(Interrupted, match="stopped after step 7, which is saved") as interrupt_info:
        train(tiny_run.config(corpus), str(folder), on_log=lambda step, metrics: logged.setdefault(step, metrics))
    assert isinstance(interrupt_info.value, KeyboardInterrupt)  # ends a notebook's cell, and no `except Exception`
    assert interrupt_info.value.exit_code == processes.RESTART
    assert {step: metrics["loss"] for step, metrics in logged.items()} == losses(folder)
    assert not (folder / "lock.json").exists()
    monkeypatch.undo()
    train(tiny_run.config(corpus), str(folder))
    assert_same_end(finished[0], folder)


def _command(corpus, folder, config_file):
    return [sys.executable, "-m", "glm_jax", "pretrain", f"--config={config_file}", f"--workdir={folder}"]


def _config_file(corpus, duration):
    path = corpus / f"config_{duration.split()[0]}.py"
    path.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import pathlib\nfrom tests.helpers import tiny_run\n"
        f"def get_config():\n    return tiny_run.config(pathlib.Path({str(corpus)!r}), train_duration={duration!r})\n"
    )
    return path


@pytest.mark.thorough
def test_kill_9_and_resume_is_bitwise(finished, corpus):
    folder = corpus / "killed"
    command = _command(corpus, folder, _config_file(corpus, "12 steps"))
    kill_at(command, folder, 6)
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert_same_end(finished[0], folder)


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_three_kills_at_random_moments(corpus, attempt):
    rng = np.random.default_rng(attempt)
    config_file = _config_file(corpus, "60 steps")
    whole, folder = corpus / "whole", corpus / f"thrice_{attempt}"
    subprocess.run(_command(corpus, whole, config_file), cwd=ROOT, check=True, capture_output=True)
    command = _command(corpus, folder, config_file)
    for step in np.sort(rng.choice(np.arange(2, 58), 3, replace=False)):
        kill_at(command, folder, step)
        time.sleep(rng.random() * 0.05)
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert_same_end(whole, folder)


@pytest.mark.thorough
def test_a_loss_that_is_no_number_stops_the_run(corpus):
    folder = corpus / "diverged"
    config = tiny_run.config(corpus, schedule__peak_lr=1e38, schedule__warmup="6 steps", optimizer__max_grad_norm=None)
    with pytest.raises(NonFiniteError, match=r"at step \d+\. The last checkpoint is intact.*Start another workdir"):
        train(config, str(folder))
    saved = folder / "checkpoints"
    for step in [p.name for p in saved.iterdir() if p.name.isdigit()]:
        params = from_pretrained(folder, step=int(step)).params
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.thorough
def test_accumulation_keeps_batches_and_losses(finished, corpus):
    folder = corpus / "accumulated"
    train(tiny_run.config(corpus, grad_accumulation_steps=4), str(folder))
    whole, parts = losses(finished[0]), losses(folder)
    np.testing.assert_allclose([parts[s] for s in whole], list(whole.values()), rtol=1e-5)


@pytest.mark.thorough
def test_init_from_starts_at_the_other_runs_parameters(finished, corpus):
    folder = corpus / "continued"
    config = tiny_run.config(corpus, init_from=str(finished[0]), schedule__peak_lr=0.0, train_duration="1 steps")
    result = train(config, str(folder))
    assert result["validation_loss"] == pytest.approx(finished[1]["validation_loss"], rel=1e-6)


def test_the_folder_of_another_config_is_refused(finished, corpus):
    with pytest.raises(RunFolderError, match=r"schedule.peak_lr: 0.003 there, 0.1 here"):
        train(tiny_run.config(corpus, schedule__peak_lr=0.1), str(finished[0]))


def _contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_refused_resume_changes_nothing(corpus, tmp_path):
    """With a trained tokenizer and an edited corpus: the run keeps its tokenizer, its config and its checkpoints."""
    text = tmp_path / "corpus.txt"
    text.write_text((corpus / "corpus.txt").read_text())
    folder = tmp_path / "run"

    def config(**changes):
        config = tiny_run.config(corpus, train_duration="2 steps", sample_every="0 steps", **changes)
        config.data.corpora = ({"source": str(text), "validation_fraction": 0.1},)
        config.data.data_dir = str(tmp_path / "data")
        with config.data.tokenizer.ignore_type():
            config.data.tokenizer.path = None
        config.data.tokenizer.vocab_size, config.data.tokenizer.pad_vocab_to_multiple_of = 300, 64
        return config

    train(config(), folder)
    (folder / "result.json").unlink()  # else it is complete, and nothing is opened
    before = _contents(folder)
    text.write_text(text.read_text().replace("ba", "zu"))
    with pytest.raises(DataError, match="trained on other rows"):
        train(config(log_every="2 steps"), folder)
    assert _contents(folder) == before
    from_pretrained(folder)
    foreign = tiny_run.config(corpus).data.tokenizer.path
    for name in ("tokenizer.json", "sentencepiece.model"):
        shutil.copy(f"{foreign}/{name}", folder / "tokenizer" / name)
    for opener in (from_pretrained, lambda path: restore_model(RunFolder(path))):
        with pytest.raises(RunFolderError, match=r"the tokenizer \w+ is not \w+, with which .*/2 was trained: put the"):
            opener(folder)


def test_a_checkpoint_without_a_fingerprint_opens(finished, tmp_path):
    """As those of earlier versions are."""
    folder = tmp_path / "old"
    shutil.copytree(finished[0], folder)
    for position in folder.glob("checkpoints/*/data/metadata"):
        saved = json.loads(position.read_text())
        assert saved.pop("tokenizer") == from_pretrained(finished[0]).tokenizer.fingerprint()
        position.write_text(json.dumps(saved))
    jax.tree.map(np.testing.assert_array_equal, from_pretrained(folder).params, from_pretrained(finished[0]).params)


def test_a_folder_in_use_is_refused_in_one_line(finished, corpus):
    with RunLock(finished[0]):
        before = _contents(finished[0])
        with pytest.raises(
            LockError, match=rf"is in use by process {os.getpid()} on .*: wait for it, or choose another"
        ):
            train(tiny_run.config(corpus), str(finished[0]))
        assert _contents(finished[0]) == before


@pytest.mark.thorough
def test_a_run_whose_folder_was_taken_over_saves_nothing(corpus, tmp_path):
    folder = tmp_path / "run"

    def take_over(step, metrics):
        (folder / "lock.json").write_text(json.dumps({"process": 7, "host": "elsewhere", "token": "other"}))

    with pytest.raises(LockError, match="taken over by process 7 on elsewhere"):
        train(tiny_run.config(corpus, train_duration="4 steps", eval_every="0 steps"), folder, on_log=take_over)
    assert not RunFolder(folder).begun


@pytest.mark.thorough
def test_a_folder_of_an_earlier_version_resumes(finished, corpus, tmp_path):
    """Its config.json has the old keys, and none that is newer than it."""
    folder = tmp_path / "old"
    shutil.copytree(finished[0], folder)
    config = json.loads((folder / "config.json").read_text())
    for old, new in config_lib.OLD_KEYS.items():
        *sections, name = new.split(".")
        section = config
        for part in sections:
            section = section[part]
        section[old.rpartition(".")[2]] = section.pop(name)
    for newer in ("kind", "patience"):
        del config[newer]
    (folder / "config.json").write_text(json.dumps(config))
    shutil.rmtree(folder / "checkpoints" / "12")
    assert from_pretrained(folder).step < 12
    train(tiny_run.config(corpus), folder)
    assert_same_end(finished[0], folder)
    assert json.loads((folder / "config.json").read_text())["train_duration"] == "12 steps"


def test_log_lines_are_shown_where_nobody_configured_logging(monkeypatch, capsys):
    logger = logging.getLogger("glm_jax")
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)  # tests of verbs in this process configure it
    with train_module._log_lines():
        logger.info("compiling")
    logger.info("not shown")
    assert capsys.readouterr().err == "compiling\n"
    monkeypatch.setattr(logging.getLogger(), "level", logging.ERROR)  # somebody wants less
    with train_module._log_lines():
        logger.info("not shown")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grad_accumulation_steps": 3}, "batch_size 8 must be a positive multiple of grad_accumulation_steps 3"),
        (
            {"corruption__document": 0.5, "corruption__pack_objectives": True},
            "puts 3 examples into a row, and 8 examples of a micro batch are no multiple of 3 on each of 1 parts",
        ),
        ({"data__sequence_length": 128}, "position_ids reach from 127 to 127"),
        ({"train_duration": "5 lightyears"}, "unknown unit 'lightyears'"),
        ({"train_duration": "0 steps"}, "is 0 steps"),
        ({"mesh__data": 2, "mesh__fsdp": 4}, "does not fit 1 devices"),
        ({"model__num_heads": 5}, "hidden_size 32 must be a multiple of num_heads 5"),
        ({"corruption__sentence": -1.0}, "must be non-negative"),
        ({"optimizer__name": "adam"}, "known: adamw, adafactor"),
        ({"logical_axis_rules": (("vocabulary", None),), "batch_size": 0}, "batch_size 0"),
        ({"init_from": "/no/such/run"}, "no run folder"),
        (
            {"logical_axis_rules": (("vocab", "fsdp"), ("embed", None))},
            "rules split both 'batch' and 'vocab' over fsdp",
        ),
        ({"corruption__sentinel_offset": 5, "model__block_positions": False}, "without block_positions does not have"),
        ({"corruption__sentinel_offset": 5, "corruption__random_position": True}, "sentinels have the last position"),
        ({"schedule__warmup": "80 %", "train_duration": "100 steps"}, "warmup of 80 steps is more than half"),
    ],
)
def test_what_cannot_run_is_refused_before_it_compiles(corpus, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(tiny_run.config(corpus, **changes), str(tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists() or not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_corpus_of_which_nothing_is_held_out_is_refused_before_it_is_read(corpus, tmp_path):
    config = tiny_run.config(corpus)
    config.data.corpora = ({"source": str(corpus / "*.txt"), "validation_fraction": 0.0},)
    config.data.data_dir = str(tmp_path / "data")
    with pytest.raises(DataError, match=r"nothing of .*\.txt is held out"):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "data").exists()


@pytest.mark.thorough
def test_held_out_texts_that_are_too_short_for_a_blank_stop_nothing(finished):
    run = from_pretrained(finished[0])
    row = {"tokens": np.full(48, run.tokenizer.special.pad, np.int32), "length": 1}
    row["tokens"][0] = run.tokenizer.special.cls
    rows = type("Rows", (list,), {"sequence_length": 48})([row] * 6)
    shown = samples.fill_held_out(run.model, run.params, run.tokenizer, rows)
    assert shown == "- the held-out texts are too short for a blank"


def test_a_missing_init_from_is_found_before_the_text_is_tokenised(corpus, tmp_path):
    config = tiny_run.config(corpus, init_from=str(tmp_path / "none"), data__data_dir=str(tmp_path / "data"))
    with pytest.raises(ValueError, match="train that run first"):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "data").exists()


def test_unknown_keys_show_the_nearest(corpus):
    config = tiny_run.config(corpus)
    with pytest.raises(AttributeError, match="batch_size"):
        config.batch_sise = 3


def test_the_verb_ends_in_one_line(corpus, tmp_path):
    command = _command(corpus, tmp_path / "run", _config_file(corpus, "12 steps"))
    done = subprocess.run([*command, "--config.grad_accumulation_steps=3"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("ValueError: batch_size 8 must be")
    assert "Traceback" not in done.stderr


def test_a_run_that_failed_at_once_may_be_mended(corpus, tmp_path):
    """No checkpoint, no claim: a mistyped corpus does not spoil the folder."""
    folder = tmp_path / "run"
    broken = tiny_run.config(corpus)
    broken.data.corpora = ({"source": str(corpus / "nothing.txt")},)
    with pytest.raises(ValueError, match=r"nothing\.txt"):
        train(broken, str(folder))
    RunFolder(folder).claim(tiny_run.config(corpus))
    assert "corpus.txt" in (folder / "config.json").read_text()
