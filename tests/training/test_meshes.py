"""One run on many meshes: the same batches bit for bit, the same losses, and states that fit every other mesh."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers import tiny_run, two_processes
from tests.helpers.compiler_flags import fake_devices
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.thorough

MESHES = ("8x1x1", "1x8x1", "1x1x8", "2x2x2")
PATH = str(ROOT)


def _found(output):
    return json.loads(next(line for line in output.splitlines() if line.startswith("FOUND ")).removeprefix("FOUND "))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meshes")
    tiny_run.write_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def one_process(folder):
    env = fake_devices(8) | {"PYTHONPATH": PATH}
    command = [sys.executable, "-m", "tests.helpers.mesh_run", str(folder), ",".join(MESHES)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return _found(done.stdout)


def test_meshes_give_the_same_losses(one_process):
    expected = one_process["8x1x1"]["losses"]
    assert expected[-1] < expected[0]
    for mesh in MESHES:
        np.testing.assert_allclose(one_process[mesh]["losses"], expected, rtol=1e-5, err_msg=mesh)


def test_meshes_see_the_same_batches(one_process):
    batches = one_process["8x1x1"]["batches"]
    assert len(set(batches)) == 10
    assert all(one_process[mesh]["batches"] == batches for mesh in MESHES)


@pytest.mark.parametrize("saved", MESHES)
def test_saved_on_one_mesh_and_restored_on_each(one_process, saved):
    """State (parameters, optimizer, step) and next batch, bit for bit."""
    restored = one_process[saved]["restored"]
    assert set(restored) == set(MESHES)
    assert len({tuple(bits) for bits in restored.values()}) == 1
    assert restored[saved][1] == one_process[saved]["batches"][5]


@pytest.mark.slow
def test_two_processes_give_the_same_run(one_process, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PATH)
    for part in ("corpus.txt", "tokenizer", "data"):
        (tmp_path / part).symlink_to(folder / part)
    program = "import sys; from tests.helpers import mesh_run\n"
    program += "mesh_run.main(sys.argv[3], sys.argv[4], sys.argv[1], sys.argv[2])"
    meshes = ("2x4x1", "1x4x2")
    outputs = two_processes.run(program, 4, str(tmp_path), ",".join(meshes), timeout=900)
    assert all("FOUND" in output for output in outputs), "\n".join(output[-3000:] for output in outputs)
    first, second = map(_found, outputs)
    assert first == second
    expected = one_process["8x1x1"]
    for mesh in meshes:
        assert first[mesh]["batches"] == expected["batches"]
        np.testing.assert_allclose(first[mesh]["losses"], expected["losses"], rtol=1e-5, err_msg=mesh)
        assert len({tuple(bits) for bits in first[mesh]["restored"].values()}) == 1
