"""docs/fidelity.md is up to date: every golden file has its rows, and the rows match the tests."""

import json
import math

import pytest

from tests.helpers import argument_defaults
from tests.helpers import fidelity as page_lib

GOLDEN = page_lib.TESTS / "golden"
PAGE = page_lib.PAGE.read_text() if page_lib.PAGE.exists() else ""


def test_every_golden_file_has_its_rows():
    present = {path.name for path in GOLDEN.iterdir()}
    assert present <= page_lib.files().keys(), "add them to GOLDEN_SET of tests/helpers/fidelity.py"
    listed = {row[0] for row in page_lib.page_rows(PAGE)}
    assert listed == page_lib.files().keys(), "run python -m tests.helpers.fidelity"


def test_unmeasured_rows_are_those_of_today():
    """Checks what needs no run: which tests name a file, and what is not offered."""
    today = {row[0]: row for row in page_lib.page_rows(page_lib.render([]))}
    for row in page_lib.page_rows(PAGE):
        file, _, difference, bound, tests = row
        if bound:
            assert bound == "exact" or float(difference) <= float(bound)
            for test in tests.split(", "):
                assert "fidelity" in (page_lib.TESTS.parent / test).read_text(), row
        else:
            assert row == today[file], "run python -m tests.helpers.fidelity"
    sections = [text.split("## Defaults")[1] for text in (PAGE, page_lib.render([]))]
    assert sections[0] == sections[1], "run python -m tests.helpers.fidelity"


@pytest.mark.slow
def test_regenerating_gives_the_same_rows():
    again = page_lib.page_rows(page_lib.render(page_lib.measure()))
    rows = page_lib.page_rows(PAGE)
    assert [(*row[:2], *row[3:]) for row in again] == [(*row[:2], *row[3:]) for row in rows]
    for old, new in zip(rows, again, strict=True):
        if old[3] not in (
            "",
            "exact",
        ):  # float32 noise differs between machines, and may be 0; a change of its size class is news
            a, b = (max(float(row[2]), float(row[3]) / 1e2) for row in (old, new))
            assert abs(math.log10(a / b)) < 1, (old, new)


def test_defaults_of_the_original(fidelity):
    golden = json.loads((GOLDEN / "argument_defaults.json").read_text())
    assert not argument_defaults.EQUAL.keys() & argument_defaults.DIFFERENT.keys()
    for argument, key in argument_defaults.EQUAL.items():
        value = argument_defaults.ours(key)
        value = int(value.removesuffix(" steps")) if isinstance(value, str) else value
        assert value == golden[argument], (argument, key)
    fidelity.compared("argument_defaults.json", f"{len(argument_defaults.EQUAL)} defaults of the same notion")
    for argument, (key, _) in argument_defaults.DIFFERENT.items():
        assert argument_defaults.ours(key) != golden[argument] or golden[argument] is None, argument


def test_a_difference_fails_and_is_named():
    recorder = page_lib.Fidelity("tests/test_fidelity.py::here")
    with pytest.raises(AssertionError, match=r"forward_A\.npz: logits differs by 0\.1, more than 1e-05"):
        recorder.close("forward_A.npz", "logits", [1.0], [1.1], 1e-5)
    with pytest.raises(AssertionError, match="shapes"):
        recorder.close("forward_A.npz", "logits", pytest.importorskip("numpy").zeros(2), 0.0, 1e-5)
    with pytest.raises(AssertionError, match="has no row"):
        recorder.compared("forward_A.npz", "something else")
    with pytest.raises(AssertionError, match="not in GOLDEN_SET"):
        recorder.compared("forward_Z.npz", "logits")
