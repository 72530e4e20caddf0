"""Every file of configs/finetune builds, and says what the original's scripts say."""

import ast
import importlib.util

import pytest

from glm_jax import config as config_lib
from glm_jax.training import setup
from glm_jax.tuning.task import check_keys, tasks_of
from tests.helpers.paths import ROOT

FILES = sorted((ROOT / "configs/finetune").glob("*.py"))
SUPERGLUE = ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc")
ARGUMENTS = {
    "superglue": (*SUPERGLUE, *(f"{name}:10b" for name in SUPERGLUE)),
    "seq2seq": ("gigaword", "cnn_dm", "cnn_dm_original", "xsum", "squad_generation", "pairs:my/pairs"),
    "infilling": ("0.1", "0.5"),
    "ag_news": (None,),
    "kjv_to_web": (None,),
}
# Of the original's scripts: epochs, batch, rate, warm-up.
PUBLISHED = {
    ("superglue", "boolq"): ("20 epochs", 16, 1e-5, "10 %"),
    ("superglue", "multirc"): ("15 epochs", 64, 1e-5, "10 %"),
    ("superglue", "record:10b"): ("3 epochs", 64, 5e-6, "10 %"),
    ("seq2seq", "gigaword"): ("10 epochs", 64, 3e-5, "6 %"),
    ("seq2seq", "pairs:my/pairs"): ("10 epochs", 64, 1e-5, "6 %"),
    ("infilling", "0.5"): ("5 epochs", 16, 1e-5, "6 %"),
}


def load(name, argument=None):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"configs/finetune/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*([argument] if argument else []))


def test_every_file_is_tested():
    assert {path.stem for path in FILES} == set(ARGUMENTS)


@pytest.mark.parametrize(("name", "argument"), [(name, a) for name, all_ in ARGUMENTS.items() for a in all_])
def test_config_builds(name, argument, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load(name, argument)
    check_keys(config)
    task, *practice = tasks_of(config)
    assert [other.name for other in practice] == (["copied_words"] if name == "kjv_to_web" else [])
    schedule = setup.resolve_durations(config, rows=10_000)
    epoch = -(-10_000 // config.batch_size)
    count, unit = config.train_duration.split()
    assert schedule.total == (int(count) if unit == "steps" else -(-int(count) * 10_000 // config.batch_size))
    assert schedule.evaluate == schedule.checkpoint == (1000 if name == "kjv_to_web" else epoch)
    assert (config.optimizer.weight_decay, config.schedule.name) in ((0.1, "linear"), (0.01, "linear"))
    if (name, argument) in PUBLISHED:
        found = (config.train_duration, config.batch_size, config.schedule.peak_lr, config.schedule.warmup)
        assert found == PUBLISHED[name, argument]
    if argument == "wsc":
        assert (config.loss, task.length_penalty, task.max_length) == ("mix", 1.0, 128)
    if argument == "xsum":
        assert (task.beams, task.length_penalty, task.target_length) == (6, 1.0, 60)


def test_unknown_names_are_refused():
    for name, argument in (("superglue", "boolk"), ("superglue", "boolq:2b"), ("seq2seq", "gigawords")):
        with pytest.raises(ValueError, match="choose from"):
            load(name, argument)
    with pytest.raises(AttributeError, match="few_shot"):
        config_lib.finetune().few_shots = 3


def test_heads_of_the_files():
    for path in FILES:
        head = ast.get_docstring(ast.parse(path.read_text()))
        assert f"configs/finetune/{path.name}" in head
