"""Worker processes: where they run, and that one that dies takes its job alone with it."""

import os

import pytest

from glm_jax.sweeps.pool import Pool, places
from glm_jax.sweeps.worker import TRAIN, Job
from tests.helpers import tuning_runs


def test_every_accelerator_and_every_two_cores_have_a_worker(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(5)), raising=False)
    assert places(None) == [({}, [0, 2, 4]), ({}, [1, 3])]
    assert places(5) == [({}, [number]) for number in range(5)]
    assert [share for _, share in places(7)] == [[0], [1], [2], [3], [4], [0], [1]]
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment, _ in places(None)] == ["2", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("glob.glob", lambda pattern: ["/dev/accel0", "/dev/accel1"] if "accel" in pattern else [])
    assert [environment["TPU_VISIBLE_CHIPS"] for environment, _ in places(None)] == ["0", "1"]


@pytest.mark.thorough
def test_a_worker_that_dies_takes_its_job_alone_with_it(place, tmp_path):
    class Jobs:
        """Two jobs; the process of the first is killed at its first validation."""

        def __init__(self):
            self.waiting = [self.job("first"), self.job("missing"), self.job("last")]
            self.results = {}

        def job(self, name):
            config = tuning_runs.config(place, init_from="nowhere" if name == "missing" else str(place / "pretrained"))
            return Job(TRAIN, tmp_path / name, config)

        def next(self):
            return self.waiting.pop(0) if self.waiting else None

        def score(self, job, step, value):
            if job.folder.name == "first":
                pool._slots[0]._process.kill()
            return True

        def end(self, job, result):
            self.results[job.folder.name] = result

    jobs = Jobs()
    with Pool(1, tmp_path / "programs") as pool:
        pool.run(jobs)
    assert jobs.results["first"] == {
        "error": "the process was ended by SIGKILL: perhaps out of memory", "died": True,
    }  # fmt: skip
    assert "nowhere" in jobs.results["missing"]["error"]
    assert "error" not in jobs.results["last"]
    assert "Traceback" in (tmp_path / "missing" / "log.txt").read_text()
