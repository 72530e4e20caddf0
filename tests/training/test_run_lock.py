"""A run folder has one owner: a second process is refused, and a crash does not block the next start."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from glm_jax.training import run_lock
from glm_jax.training.run_lock import LOCK_FILE, LockError, RunLock
from tests.helpers.paths import ROOT

HOLD = """
import sys, time
from glm_jax.training.run_lock import RunLock
with RunLock(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that owns the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_gets_one_line_and_a_killed_one_blocks_nobody(tmp_path, holder):
    message = rf"{tmp_path} is in use by process {holder.pid} on \S+ since \d{{4}}-\d\d-\d\d .*: wait for it, or choose"
    with pytest.raises(LockError, match=message), RunLock(tmp_path):
        pass
    assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == holder.pid
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()
    assert time.monotonic() - began < 5
    assert not list(tmp_path.iterdir())


def test_a_process_number_that_is_used_again_is_not_the_owner(tmp_path):
    with RunLock(tmp_path):
        owner = json.loads((tmp_path / LOCK_FILE).read_text())
    (tmp_path / LOCK_FILE).write_text(json.dumps(owner | {"started": "12"}))
    with RunLock(tmp_path):
        pass
    (tmp_path / LOCK_FILE).write_text(json.dumps(owner))  # this very process
    with pytest.raises(LockError), RunLock(tmp_path):
        pass


def test_a_lock_that_a_crash_cut_short_is_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "STALE_AFTER", 0.3)
    (tmp_path / LOCK_FILE).write_text('{"proc')
    with RunLock(tmp_path):
        pass


@pytest.mark.thorough
def test_the_owner_on_another_machine_is_known_by_its_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "STALE_AFTER", 3.0)
    path = tmp_path / LOCK_FILE
    path.write_text(json.dumps({"process": 1, "host": "elsewhere", "since": "today", "token": "t", "started": "1"}))
    stop = threading.Event()

    def beat():
        while not stop.wait(0.2):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(LockError, match="in use by process 1 on elsewhere since today"), RunLock(tmp_path):
        pass
    stop.set()
    thread.join()
    began = time.monotonic()
    with RunLock(tmp_path):
        assert time.monotonic() - began > 1  # fresh, so it was watched
    path.write_text(json.dumps({"process": 1, "host": "elsewhere", "token": "t"}))
    os.utime(path, (time.time() - 100, time.time() - 100))
    began = time.monotonic()
    with RunLock(tmp_path):
        assert time.monotonic() - began < 1  # long silent


def test_the_heartbeat_changes_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT", 0.05)
    with RunLock(tmp_path):
        os.utime(tmp_path / LOCK_FILE, (1, 1))
        deadline = time.monotonic() + 10
        while (tmp_path / LOCK_FILE).stat().st_mtime < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_an_owner_that_was_replaced_notices_and_leaves_the_lock(tmp_path):
    with RunLock(tmp_path) as lock:
        lock.check()
        other = json.dumps({"process": 7, "host": "elsewhere", "token": "other"})
        (tmp_path / LOCK_FILE).write_text(other)
        with pytest.raises(LockError, match="taken over by process 7 on elsewhere"):
            lock.check()
    assert (tmp_path / LOCK_FILE).read_text() == other


@pytest.mark.parametrize(("remote", "rounds"), [(False, 40), (True, 1)])
def test_of_many_starts_at_once_one_gets_the_folder(tmp_path, remote, rounds):
    """With a stale lock in the way, on a disk and on an object store."""

    def start(lock, gate):
        gate.wait()
        try:
            lock.__enter__()
            got.append(lock)
        except LockError as error:
            refused.append(error)

    for number in range(rounds):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / LOCK_FILE).write_text(json.dumps({"process": 1, "host": "elsewhere", "token": "t"}))
        os.utime(folder / LOCK_FILE, (1, 1))
        got, refused, gate = [], [], threading.Barrier(8)
        locks = [RunLock(folder) for _ in range(8)]
        for lock in locks:
            lock._remote = remote
        threads = [threading.Thread(target=start, args=(lock, gate)) for lock in locks]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        assert (len(got), len(refused)) == (1, 7)
        got[0].__exit__()


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def no_links(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    with RunLock(tmp_path), pytest.raises(LockError), RunLock(tmp_path):
        pass
    with RunLock(tmp_path):
        pass
