"""One writer per run folder: a lock file that outlives a crash without blocking the next start.

The file names its owner. An owner on this machine is looked up by process id and start time. An owner elsewhere is
known by its heartbeat: a thread rewrites the file every `HEARTBEAT` seconds, and one that stays unchanged for
`STALE_AFTER` seconds belongs to a process that is gone.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

from etils import epath

LOCK_FILE = "lock.json"
HEARTBEAT = 10.0  # seconds
STALE_AFTER = 60.0  # seconds


class LockError(ValueError):
    """The run folder is in use by another process, or was taken over by one."""


class RunLock:
    """Owns a run folder from `__enter__` to `__exit__`; process 0 of a job takes it.

    On a local disk or NFS the lock is a hard link, which one process alone can create. Object stores (gs://…) have no
    such operation here: there the lock is written and read back, which two starts in the same second may defeat.

    Args:
      directory: the run folder; created if missing.
    """

    def __init__(self, directory: str | os.PathLike):
        self._directory = epath.Path(directory)
        self._path = self._directory / LOCK_FILE
        self._remote = "://" in os.fspath(directory)
        self._owner: dict[str, Any] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "RunLock":
        """Takes the lock. Waits up to `STALE_AFTER` seconds for a sign of life of an owner on another machine.

        Raises:
          LockError: a live process owns the folder; it is named with its machine and the time since when.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        self._owner = _describe_this_process()
        while not self._create():
            owner, modified = self._read()
            if owner is None:  # released in this moment
                continue
            if self._is_alive(owner, modified):
                raise LockError(
                    f"{self._directory} is in use by process {owner.get('process')} on {owner.get('host')} since "
                    f"{owner.get('since')}: wait for it, or choose another --workdir"
                )
            self._remove_stale(owner)
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Releases the lock, unless another process took it over."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        owner, _ = self._read()
        if owner is not None and owner.get("token") == self._owner["token"]:
            self._path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises LockError when another process took the folder over: this one was silent for too long."""
        owner, _ = self._read()
        if owner is None or owner.get("token") != self._owner["token"]:
            other = f"process {owner.get('process')} on {owner.get('host')}" if owner else "another process"
            raise LockError(
                f"{self._directory} was taken over by {other}, because this process gave no sign of life for "
                f"{STALE_AFTER:g} s: nothing more is written here"
            )

    def _create(self) -> bool:
        """Whether the lock is now this process's."""
        content = json.dumps(self._owner) + "\n"
        if self._remote:
            if self._path.exists():
                return False
            self._path.write_text(content)  # one request, which readers see whole
            time.sleep(1.0)  # a second writer of the same moment has written by now; the last one owns the folder
            owner, _ = self._read()
            return owner is not None and owner.get("token") == self._owner["token"]
        temporary = pathlib.Path(self._directory) / f".{LOCK_FILE}.{self._owner['token']}"
        temporary.write_text(content)
        try:
            os.link(temporary, self._path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            try:
                with open(self._path, "x") as file:
                    file.write(content)
            except FileExistsError:
                return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _read(self) -> tuple[dict[str, Any] | None, float]:
        """The owner and the time of its last sign of life by the file's clock; (None, 0) without a lock."""
        try:
            content = self._path.read_text()  # opened first: NFS then asks the server for the time below
            modified = self._path.stat().mtime
        except FileNotFoundError:
            return None, 0.0
        return _parse(content), float(modified)

    def _is_alive(self, owner: Mapping[str, Any], modified: float) -> bool:
        here = _describe_this_process()
        if all(owner.get(key) == here[key] for key in ("host", "boot", "namespace")):
            return _start_time(owner.get("process")) == owner.get("started") is not None
        # The clocks of machines differ: a live owner is one whose file changes while this process looks.
        deadline = time.monotonic() + STALE_AFTER - max(0.0, self._age(modified))
        while time.monotonic() < deadline:
            time.sleep(min(1.0, HEARTBEAT / 10))
            now, changed = self._read()
            if now is None or now.get("token") != owner.get("token"):
                return False
            if changed != modified:
                return True
        return False

    def _age(self, modified: float) -> float:
        """Seconds since `modified`, by the clock of the disk that the folder lies on."""
        probe = self._directory / f".{LOCK_FILE}.{self._owner['token']}.now"
        try:
            probe.write_text("")
            return float(probe.stat().mtime) - modified
        finally:
            probe.unlink(missing_ok=True)

    def _remove_stale(self, owner: Mapping[str, Any]) -> None:
        """Removes the lock of `owner`, and of nobody else who took it in the meantime.

        The stale file is locked while it is looked at and removed, so that the second of two processes that remove it
        finds another file in its place. The kernel frees the file of one that dies here.
        """
        if self._remote:  # `_create` looks again after a second
            now, _ = self._read()
            if now is not None and now.get("token") == owner.get("token"):
                self._path.unlink(missing_ok=True)
            return
        try:
            with open(self._path, "r+") as file:
                with contextlib.suppress(OSError):  # a file system without such locks
                    fcntl.flock(file, fcntl.LOCK_EX)
                in_place = os.path.samestat(os.fstat(file.fileno()), os.stat(self._path))
                if in_place and _parse(file.read()).get("token") == owner.get("token"):
                    os.unlink(self._path)
        except FileNotFoundError:
            return

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            try:
                if self._remote:
                    self.check()
                    self._path.write_text(json.dumps(self._owner) + "\n")
                else:
                    os.utime(self._path)  # the time of the disk's server
            except (OSError, LockError):
                continue  # `check` says so where it matters


def _parse(content: str) -> dict[str, Any]:
    """The owner in a lock file; nothing of one that a crash cut short."""
    try:
        owner = json.loads(content)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _describe_this_process() -> dict[str, Any]:
    def read(path):
        try:
            return pathlib.Path(path).read_text().strip()
        except OSError:
            return ""

    try:
        namespace = os.readlink("/proc/self/ns/pid")  # process ids of containers are their own
    except OSError:
        namespace = ""
    return {
        "process": os.getpid(),
        "started": _start_time(os.getpid()),
        "host": socket.gethostname(),
        "boot": read("/proc/sys/kernel/random/boot_id"),
        "namespace": namespace,
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "token": uuid.uuid4().hex,
    }


def _start_time(process: Any) -> str | None:
    """What distinguishes a live process from a later one of the same number; None for one that is gone."""
    if not isinstance(process, int):
        return None
    try:
        fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie has ended
    except OSError:
        if pathlib.Path("/proc/self/stat").exists():
            return None
    try:  # a system without /proc
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"
