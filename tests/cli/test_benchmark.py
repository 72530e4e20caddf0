"""`python -m glm_jax benchmark NAME`: its arguments, and the JSON on the last line."""

import importlib
import inspect
import json
import shlex
import subprocess
import sys

import jax
import pytest

from glm_jax.cli import benchmark
from tests.helpers.benchmark_keys import KEYS
from tests.helpers.paths import ROOT
from tools import __main__ as tools

PROG = "python -m glm_jax benchmark"


def _parse(name, *words):
    return benchmark.parse(f"{PROG} {name}", benchmark.MEASUREMENTS[name], words)


@pytest.mark.thorough
def test_the_result_is_the_last_line():
    command = [*PROG.split()[1:], "corruption", "--length=32", "--batch=2"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result.keys() >= KEYS
    assert (result["benchmark"], result["jax"]) == ("corruption", jax.__version__)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stride",), "unknown name 'stride'; nearest: step"),
        (("step", "--config", "no/such.py"), "no/such.py is no config file: name one of configs/"),
        (("step", "--config="), "names no file"),
        (("step", "--config.model.num_layer=2"), "nearest: model.num_layers"),
        (("finetune", "--config=configs/finetune/superglue.py:nix"), "unknown task 'nix': choose from boolq"),
        (("corruption", "--lenth=3"), "unknown argument '--lenth=3'; nearest: --length"),
        (("corruption", "--config.batch_size=3"), "unknown argument '--config.batch_size=3'"),
        (("step", "now"), "unknown argument 'now'"),
    ],
)
def test_mistakes_are_answered_in_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        benchmark.main(arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_keys_and_options_reach_the_measurement(monkeypatch):
    monkeypatch.chdir(ROOT)
    (config,), _ = _parse("step", "--config", "configs/pretrain/glm_base.py", "--config.batch_size=4")
    assert config.batch_size == 4
    assert config.model.size == "base"
    _, options = _parse("decode", "--batches", "2", "3", "--layers=1")
    assert options["batches"] == (2, 3)
    assert options["layers"] == 1


def test_the_commands_of_the_pages_are_understood(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = "".join(page.read_text().replace("\\\n", " ") for page in sorted((ROOT / "docs").glob("performance*.md")))
    for prog, measurements in ((PROG, benchmark.MEASUREMENTS), ("python -m tools", tools.MEASUREMENTS)):
        lines = [line.removeprefix(f"$ {prog} ") for line in text.splitlines() if line.startswith(f"$ {prog} ")]
        names = set()
        for name, *words in map(shlex.split, lines):
            benchmark.parse(f"{prog} {name}", measurements[name], words)
            names.add(name)
        assert names == set(measurements)


@pytest.mark.parametrize("name", benchmark.MEASUREMENTS)
def test_every_measurement_has_help_with_examples_that_it_understands(name, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        benchmark.main([name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.count(f"\n  {PROG} {name}") >= 2
    for words in benchmark.MEASUREMENTS[name].examples:
        _parse(name, *words.split())


def test_every_measurement_takes_its_options():
    for name, measurement in benchmark.MEASUREMENTS.items():
        run = importlib.import_module(f"glm_jax.benchmarks.{name}").run
        assert set(measurement.options) <= set(inspect.signature(run).parameters), name
