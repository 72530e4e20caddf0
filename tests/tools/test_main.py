"""`python -m tools NAME`: every tool explains itself and takes its options."""

import importlib
import inspect
import subprocess
import sys

import pytest

from glm_jax.cli.benchmark import parse
from tests.helpers.paths import ROOT
from tools import __main__ as tools

NAMES = (*tools.MEASUREMENTS, "survey", "searches")


@pytest.mark.parametrize("name", NAMES)
def test_every_tool_has_help_with_examples(name, capsys):
    with pytest.raises(SystemExit) as end:
        tools.main([name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.count(f"\n  python -m tools {name}") >= 2


def test_the_tools_are_listed():
    done = subprocess.run([sys.executable, "-m", "tools"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert all(f"\n  {name}" in done.stdout for name in NAMES)


def test_every_tool_takes_its_options():
    for name, measurement in tools.MEASUREMENTS.items():
        run = importlib.import_module(f"tools.{name}").run
        assert set(measurement.options) <= set(inspect.signature(run).parameters), name
        for words in measurement.examples:
            parse(f"python -m tools {name}", measurement, [word.strip("'") for word in words.split()])
