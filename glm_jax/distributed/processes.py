"""Several processes, one job: who takes part, whether all agree, and errors that name the process that failed.

Processes talk through the key-value store of `jax.distributed`, not through the devices. This costs a training step
nothing and still works when a device hangs. In a job of one process every function returns at once.
"""

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import pathlib
import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from glm_jax.distributed import cluster
from glm_jax.distributed.cluster import HostError
from glm_jax.files import compare_config, config_value

logger = logging.getLogger(__name__)

RESTART = os.EX_TEMPFAIL  # exit code: the state is saved, start the same command again
DEFAULT_TIMEOUT = 300.0  # seconds
LONG_TIMEOUT = 7 * 24 * 3600.0  # for work that may take hours; a process that dies is noticed without it

_T = TypeVar("_T")
_names: tuple[str, ...] = ()
_timeout = DEFAULT_TIMEOUT
_calls = itertools.count()  # every process makes the same calls in the same order


def start(setting: str | None = None, timeout: float | None = None) -> None:
    """Joins the job that this process belongs to. Call it before anything else touches a device.

    Args:
      setting: see `cluster.find_job`; None takes the environment variable GLM_JAX_HOSTS, else "auto".
      timeout: seconds within which every process must arrive, here and at later barriers; None takes
        GLM_JAX_HOST_TIMEOUT, else 300.

    Raises:
      ValueError: the setting cannot be understood.
      HostError: a process did not arrive (it is named), or two claim the same number.
    """
    global _names, _timeout
    import jax

    setting = setting or os.environ.get("GLM_JAX_HOSTS") or "auto"
    given = os.environ.get("GLM_JAX_HOST_TIMEOUT") or DEFAULT_TIMEOUT
    try:
        timeout = timeout or float(given)
    except ValueError:
        raise ValueError(f"GLM_JAX_HOST_TIMEOUT = {given!r} must be a number of seconds, such as 300") from None
    job = cluster.find_job(setting, os.environ, timeout)
    if job is None or job.count == 1:
        return
    # JAX itself would end the process without naming who is missing.
    _names, _timeout = cluster.wait_for_processes(job, timeout), timeout
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        job.coordinator, job.count, job.index, job.local_devices, cluster_detection_method="deactivate",
        initialization_timeout=int(timeout), shutdown_timeout_seconds=60,
    )  # fmt: skip
    if jax.default_backend() == "cpu":
        # Gloo gives the members of a group 30 s for their first collective. Here all have just arrived; later, where
        # Orbax first gathers over this group, one may still be reading or compiling.
        from jax.experimental import multihost_utils

        allgather_text("the first collective")
        multihost_utils.sync_global_devices("glm_jax")
    if job.index:
        logging.getLogger("glm_jax").setLevel(logging.WARNING)  # every process would log the same
    logger.info(
        "process %s of %d, found by %s; coordinator %s", name(job.index), job.count, job.source, job.coordinator
    )


def name(process: int) -> str:
    """The name of a process in messages: its machine, where that is known, and its number."""
    return f"{_names[process]} (process {process})" if process < len(_names) else f"process {process}"


def allgather_text(what: str, value: str = "", timeout: float | None = None) -> list[str]:
    """Returns the texts that all processes passed, by process number; also a barrier.

    Raises:
      HostError: a process did not arrive within `timeout` seconds (None: that of `start`), or died; it is named.
    """
    state = _distributed()
    if state.client is None or state.num_processes == 1:
        return [value]
    import jax

    seconds = timeout or _timeout
    key = f"glm_jax/{next(_calls)}/{what}"
    state.client.key_value_set(f"{key}/{state.process_id}", value)
    problem = None
    try:
        state.client.wait_at_barrier(key, int(1000 * seconds))
    except jax.errors.JaxRuntimeError as error:
        problem = error
    arrived = {int(k.rsplit("/", 1)[1]): v for k, v in state.client.key_value_dir_get(f"{key}/")}
    if problem is not None:
        missing = [name(i) for i in range(state.num_processes) if i not in arrived]
        late = "DEADLINE_EXCEEDED" in str(problem)
        reason = f"did not arrive within {seconds:g} s" if late else f"is lost: {str(problem).splitlines()[0]}"
        raise HostError(f"{what}: {', '.join(missing) or 'a process'} {reason}; its own log says why") from problem
    return [arrived[process] for process in range(state.num_processes)]


def allgather(values: Any) -> list[Any]:
    """Returns the JSON values that all processes passed, by process number. Uses the devices: values may be long."""
    if _distributed().num_processes == 1:
        return [values]
    from jax.experimental import multihost_utils

    content = np.frombuffer(json.dumps(values).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(content.size))).ravel()
    padded = np.pad(content, (0, int(sizes.max()) - content.size))
    every = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:size].tobytes()) for row, size in zip(every, sizes, strict=True)]


@contextlib.contextmanager
def all_or_none(what: str, timeout: float | None = None) -> Iterator[None]:
    """Runs a block on all processes. If it fails on one, that one raises its error and the others name it.

    Without this the others would wait in the next collective until they are killed.

    Raises:
      HostError: the block failed on another process, or a process did not finish it within `timeout` seconds.
    """
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    try:
        messages = allgather_text(what, "" if error is None else f"{type(error).__name__}: {error}", timeout)
    except HostError as lost:
        raise error or lost from None  # the error of this process comes first
    if error is not None:
        raise error
    failed = [f"{name(process)}: {text}" for process, text in enumerate(messages) if text]
    if failed:
        raise HostError(f"{what} failed on {'; '.join(failed[:4])}" + (" …" if len(failed) > 4 else ""))


def primary_first(what: str, function: Callable[[], _T]) -> _T:
    """Calls `function` on process 0, then on the others, which find its files on a disk that they share."""
    primary = _distributed().process_id == 0
    result = None
    for turn in (True, False):
        with all_or_none(what, LONG_TIMEOUT):
            if primary == turn:
                result = function()
    return result


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Compares facts (nested, JSON), versions, code and compiler flags over all processes, by their hash.

    Raises:
      HostError: a process differs from process 0; both are named with the keys that differ.
    """
    if _distributed().num_processes == 1:
        return
    text = json.dumps({**facts, **_software()}, sort_keys=True)
    hashes = allgather_text("comparing configs and versions", hashlib.sha256(text.encode()).hexdigest())
    if len(set(hashes)) == 1:
        return
    first, *others = map(json.loads, allgather_text("finding what differs", text))

    def shown(facts, key):
        return json.dumps(config_value(facts, key))

    lines = []
    for process, other in enumerate(others, start=1):
        for key in compare_config(first, other)[:5]:
            lines.append(f"{key} is {shown(other, key)} on {name(process)}, {shown(first, key)} on {name(0)}")
    raise HostError(
        "processes differ: " + "; ".join(lines[:8]) + ". Start all processes with the same command and versions"
    )


def _software() -> dict[str, Any]:
    root = pathlib.Path(__file__).parents[1]  # glm_jax/
    code = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        code.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    packages = ("glm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {"python": platform.python_version(), "code": code.hexdigest()[:16]}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {"versions": versions, "flags": {n: os.environ.get(n, "") for n in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}}


def _distributed():
    """The state of `jax.distributed`: JAX has no public name for the key-value store of a job."""
    from jax._src import distributed

    return distributed.global_state
