"""Kills a run and compares what is left with a run that nobody killed."""

import pathlib
import signal
import subprocess
import time

import jax
import numpy as np

from glm_jax.interop import from_pretrained
from glm_jax.training.metric_writer import read_metrics
from tests.helpers.paths import ROOT


def losses(folder: pathlib.Path) -> dict[int, float]:
    """Step -> logged loss."""
    return {line["step"]: line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line}


def kill_at(command: list[str], folder: pathlib.Path, step: int) -> None:
    """Starts `command` and kills it as soon as `step` is logged: at some moment of the steps that follow."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    while max(losses(folder), default=0) < step:
        assert process.poll() is None, process.stderr.read().decode()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def assert_same_end(folder: pathlib.Path, other: pathlib.Path) -> None:
    """Bitwise: the losses of all steps and the final parameters."""
    assert losses(folder) == losses(other)
    ours, theirs = from_pretrained(folder), from_pretrained(other)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert ours.checksum == theirs.checksum
