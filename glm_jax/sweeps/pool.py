"""Worker processes, one for each accelerator or share of the cores, and the loop that gives them jobs."""

import glob
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any, Protocol, runtime_checkable

from glm_jax.sweeps.worker import Job, work

logger = logging.getLogger(__name__)

CORES_PER_WORKER = 2
STOP_SECONDS = 60  # within which workers must have saved what they do


@runtime_checkable
class Jobs(Protocol):
    """Where a pool takes its jobs."""

    def next(self) -> Job | None:
        """The next job; None while there is none, which may change when a running one ends."""

    def score(self, job: Job, step: int, value: float) -> bool:
        """Takes a validation score; whether the job may go on."""

    def end(self, job: Job, result: Mapping[str, Any]) -> None:
        """Takes the result of a job; one with "error" failed, and with "died" its process is gone."""


class Pool:
    """Workers that start with their first job. Use it in a `with` block, which ends them."""

    def __init__(self, count: int | None, programs: os.PathLike):
        self._slots = [_Worker(place, os.fspath(programs)) for place in places(count)]

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._slots:
            worker.stop()
        for worker in self._slots:
            worker.join(STOP_SECONDS)

    def __len__(self) -> int:
        return len(self._slots)

    def run(self, jobs: Jobs) -> None:
        """Does all jobs. A process that dies takes its job alone with it."""
        while True:
            for worker in self._slots:
                if worker.job is None and (job := jobs.next()) is not None:
                    worker.start(job)
            running = {worker.connection: worker for worker in self._slots if worker.job is not None}
            if not running:
                return
            for connection in wait(list(running)):
                self._hear(running[connection], jobs)

    def _hear(self, worker, jobs):
        try:
            kind, *values = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            job, worker.job = worker.job, None
            jobs.end(job, {"error": worker.epitaph(), "died": True})
            return
        if kind == "score":
            worker.connection.send(jobs.score(worker.job, *values))
        else:
            job, worker.job = worker.job, None
            jobs.end(job, *values)


class _Worker:
    """A process, started again when it has died."""

    def __init__(self, place, programs):
        self._place, self._programs = place, programs
        self._process, self.connection, self.job = None, None, None

    def start(self, job: Job) -> None:
        """Gives the process a job."""
        if self._process is None or not self._process.is_alive():
            context = multiprocessing.get_context("spawn")
            self.connection, other = context.Pipe()
            self._process = context.Process(target=work, args=(other, *self._place, self._programs), daemon=True)
            self._process.start()
            other.close()
        self.job = job
        self.connection.send(job)

    def epitaph(self) -> str:
        """Why the process is gone."""
        self._process.join(STOP_SECONDS)
        code = self._process.exitcode or 0
        if code < 0:
            hint = ": perhaps out of memory" if -code == signal.SIGKILL else ""
            return f"the process was ended by {signal.Signals(-code).name}{hint}"
        return f"the process ended with code {code}"

    def stop(self) -> None:
        """Asks the process to end: a trial saves its state first."""
        if self._process is not None and self._process.is_alive():
            if self.job is None:
                self.connection.close()
            else:
                self._process.terminate()

    def join(self, seconds: float) -> None:
        """Waits for the end, and then enforces it. A trial that has a score to tell before is answered."""
        if self._process is None:
            return
        deadline = time.monotonic() + seconds
        while self._process.is_alive() and time.monotonic() < deadline:
            try:
                if self.job is not None and self.connection.poll(0.1) and self.connection.recv()[0] == "score":
                    self.connection.send(True)
            except (EOFError, OSError):
                self.job = None
            if self.job is None:
                self._process.join(0.1)
        if self._process.is_alive():
            self._process.kill()


def places(count: int | None) -> list[tuple[dict[str, str], Sequence[int] | None]]:
    """Environment variables and cores of `count` workers; None: one an accelerator, or one for every two cores.

    Devices are found by their files, because whoever asks JAX takes them.
    """
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = gpus.split(",") if gpus else [path[len("/dev/nvidia") :] for path in sorted(glob.glob("/dev/nvidia[0-9]*"))]
    chips = sorted(glob.glob("/dev/accel[0-9]*")) or sorted(glob.glob("/dev/vfio/[0-9]*"))
    only_cpu = os.environ.get("JAX_PLATFORMS", "").split(",")[0] == "cpu"
    if gpus and not only_cpu:
        return [({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]}, None) for i in range(count or len(gpus))]
    if chips and not only_cpu:
        one = {"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1"}
        return [(one | {"TPU_VISIBLE_CHIPS": str(i % len(chips))}, None) for i in range(count or len(chips))]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    count = count or max(1, len(cores) // CORES_PER_WORKER)
    shares = [cores[i % len(cores) :: count] if count <= len(cores) else [cores[i % len(cores)]] for i in range(count)]
    return [({}, share) for share in shares]
