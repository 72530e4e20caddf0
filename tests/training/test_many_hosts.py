"""Runs on two processes: stopped, killed, and continued on other numbers of hosts and other meshes."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from glm_jax.distributed.processes import RESTART
from glm_jax.training.metric_writer import read_metrics
from glm_jax.tuning.train import train
from tests.helpers import tiny_run, two_processes
from tests.helpers.compiler_flags import fake_devices
from tests.helpers.paths import ROOT

CHANGES = {
    "train_duration": "80 steps",
    "schedule__peak_lr": 3e-4,
    "eval_every": "40 steps",
    "sample_every": "80 steps",
}


def _start(folder, devices):
    """The verb, as two processes with `devices` each."""
    file = folder / "config.py"
    file.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport pathlib\nfrom tests.helpers import tiny_run\n"
        f"def get_config():\n    return tiny_run.config(pathlib.Path({str(folder)!r}), **{CHANGES!r},\n"
        f"        compilation_cache={str(folder / 'compiled')!r})\n"
    )
    address = two_processes.free_address()
    command = [sys.executable, "-m", "glm_jax", "pretrain", f"--config={file}", f"--workdir={folder / 'run'}"]
    return [
        subprocess.Popen(
            command, cwd=ROOT, env=fake_devices(devices) | {"GLM_JAX_HOSTS": f"{address},2,{i}"},
            stdout=subprocess.DEVNULL, stderr=(folder / f"{i}.log").open("w"),
        )
        for i in range(2)
    ]  # fmt: skip


def _losses(folder):
    return {line["step"]: line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line}


def _wait_for_step(processes, folder, step):
    deadline = time.monotonic() + 400
    while max(_losses(folder / "run"), default=0) < step:
        logs = "\n".join((folder / f"{i}.log").read_text()[-3000:] for i in range(2))
        assert all(process.poll() is None for process in processes), logs
        assert time.monotonic() < deadline, logs
        time.sleep(0.02)


@pytest.mark.slow
def test_sigterm_then_kill_then_one_host(tmp_path):
    """The losses are those of a run on one device that nobody stopped."""
    tiny_run.write_corpus(tmp_path)
    train(tiny_run.config(tmp_path, **CHANGES), str(tmp_path / "whole"))

    processes = _start(tmp_path, devices=2)
    _wait_for_step(processes, tmp_path, 2)
    processes[1].send_signal(signal.SIGTERM)  # one host is told; both stop, at the same step
    assert [process.wait(300) for process in processes] == [RESTART] * 2
    stopped = max(_losses(tmp_path / "run"))
    assert 2 < stopped < 70
    assert (tmp_path / "run" / "checkpoints" / str(stopped)).is_dir()

    processes = _start(tmp_path, devices=4)  # another mesh
    _wait_for_step(processes, tmp_path, stopped + 5)
    processes[1].kill()
    assert processes[0].wait(300) not in (0, RESTART)  # it notices, and does not wait for ever
    assert f"restored step {stopped}" in (tmp_path / "0.log").read_text()

    train(tiny_run.config(tmp_path, **CHANGES), str(tmp_path / "run"))  # one host
    assert list((tmp_path / "compiled").glob("jit_step*"))
    whole, parts = _losses(tmp_path / "whole"), _losses(tmp_path / "run")
    assert list(parts) == list(whole) == list(range(1, 81))
    np.testing.assert_allclose(list(parts.values()), list(whole.values()), rtol=1e-5)
