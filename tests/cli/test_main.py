"""One door: `python -m glm_jax` lists its verbs, every verb explains itself, and mistakes are answered in one line."""

import subprocess
import sys

import pytest

from glm_jax import __main__ as door
from glm_jax.cli.common import one_line_errors
from glm_jax.files import nearest, write_json_atomic
from tests.helpers.paths import ROOT


def _python(*words):
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_verb_the_verbs_are_listed(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        door.main(arguments)
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for verb, text in door.VERBS.items():
        assert f"  {verb:<9}  {text}\n" in printed


def test_the_list_starts_no_jax():
    done = _python("-X", "importtime", "-m", "glm_jax", "--help")
    assert done.returncode == 0
    assert "pretrain" in done.stdout
    assert "glm_jax.cli.common" in done.stderr
    assert " jax\n" not in done.stderr


def test_an_unknown_verb_is_answered_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as end:
        door.main(["pretain", "--workdir=runs/x"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "python -m glm_jax: unknown name 'pretain'; nearest: pretrain\n"


def _guarded(function, *arguments):
    with one_line_errors():
        function(*arguments)


def test_an_error_of_the_package_ends_in_one_line():
    with pytest.raises(SystemExit, match="ValueError: cannot write x as JSON"):
        _guarded(write_json_atomic, "x", float("nan"))


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(TypeError):
        _guarded(nearest, "x", 3)
    with pytest.raises(ValueError, match="invalid literal"):
        _guarded(int, "not of this package")
