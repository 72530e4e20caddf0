"""Finding the job that a process is a part of: SLURM, TPU pods and GKE, or what the user says."""

import contextlib
import dataclasses
import importlib.util
import json
import pathlib
import re
import socket
import time
from collections.abc import Mapping

SETTING = 'must be "auto", "off", "slurm", "tpu", or COORDINATOR:PORT,COUNT,INDEX'


class HostError(RuntimeError):
    """A host is missing, failed, or differs from the others."""


@dataclasses.dataclass(frozen=True)
class Job:
    """The place of a process among those of its job."""

    coordinator: str  # host:port of process 0
    count: int
    index: int
    source: str  # what said so
    names: tuple[str, ...] = ()  # host names by process number, where they are known beforehand
    local_devices: tuple[int, ...] | None = None  # of the GPUs that can be seen; None: all

    def name(self, process: int) -> str:
        """How a message calls a process that has not spoken yet."""
        return f"{self.names[process]} (process {process})" if process < len(self.names) else f"process {process}"


def find_job(setting: str, environment: Mapping[str, str], timeout: float) -> Job | None:
    """The job of this process, or None when it is alone.

    Args:
      setting: "auto" looks for a SLURM step of several tasks, then for a TPU slice (a pod's VMs, or GKE); "slurm" and
        "tpu" insist on one; "off" is a process of its own; "node1:1234,4,2" is process 2 of 4, coordinated there.
      environment: variables of the process.
      timeout: seconds that the answer of a TPU's metadata may take.

    Raises:
      ValueError: the setting is none of these, or what it insists on is not there.
    """
    if setting == "off":
        return None
    if setting == "auto":
        return _slurm(environment) or _tpu(environment, timeout)
    if setting in ("slurm", "tpu"):
        job = _slurm(environment) if setting == "slurm" else _tpu(environment, timeout)
        if job is None:
            what = "step of several tasks (start it with srun)" if setting == "slurm" else "slice of several hosts"
            raise ValueError(
                f'hosts = "{setting}", but this process is in no {setting} {what}; "auto" would go on alone'
            )
        return job
    match = re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", setting)
    if not match:
        raise ValueError(f"hosts = {setting!r} {SETTING}")
    coordinator, count, index = match[1], int(match[2]), int(match[3])
    if not 0 <= index < count:
        raise ValueError(f"hosts = {setting!r}: process {index} is not one of {count}; they are numbered from 0")
    return Job(coordinator, count, index, "its setting")


def _slurm(environment: Mapping[str, str]) -> Job | None:
    count = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if count == 1 or "SLURM_PROCID" not in environment:
        return None
    nodes = expand_nodes(environment["SLURM_STEP_NODELIST"])
    tasks = _expand_counts(environment["SLURM_STEP_TASKS_PER_NODE"])
    names = tuple(node for node, number in zip(nodes, tasks, strict=True) for _ in range(number))
    # Unprivileged, and another one for every job and step that may share the node.
    port = 61440 + (int(environment["SLURM_JOB_ID"]) * 8 + int(environment.get("SLURM_STEP_ID", 0))) % 4096
    here = tasks[int(environment.get("SLURM_NODEID", 0))]
    gpus = [gpu for gpu in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    devices = None
    bound = "SLURM_GPUS_PER_TASK" in environment  # each task sees its own GPUs
    if here > 1 and len(gpus) > 1 and not bound:  # the tasks of a node see the same GPUs: each takes its share
        share, local = len(gpus) // here, int(environment["SLURM_LOCALID"])
        if not share:
            raise ValueError(f"{here} tasks on a node with {len(gpus)} GPUs: start at most one task for each GPU")
        devices = tuple(range(local * share, (local + 1) * share))
    return Job(f"{nodes[0]}:{port}", count, int(environment["SLURM_PROCID"]), "SLURM", names, devices)


def expand_nodes(text: str) -> list[str]:
    """Host names of a SLURM node list: "gpu[01-03,7],login" is gpu01, gpu02, gpu03, gpu7, login."""
    names = []
    for prefix, ranges, suffix in re.findall(r"([^,\[]+)(?:\[([^\]]*)\])?([^,\[]*)", text):
        if not ranges:
            names.append(prefix + suffix)
            continue
        for part in ranges.split(","):
            first, _, last = part.partition("-")
            names += [f"{prefix}{n:0{len(first)}d}{suffix}" for n in range(int(first), int(last or first) + 1)]
    return names


def _expand_counts(text: str) -> list[int]:
    """ "2(x3),1" is 2, 2, 2, 1."""
    counts = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    return counts


def _tpu(environment: Mapping[str, str], timeout: float) -> Job | None:
    hosts = [host for host in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    devices = any(any(pathlib.Path("/dev").glob(pattern)) for pattern in ("accel*", "vfio/[0-9]*"))
    if "tpu" not in environment.get("JAX_PLATFORMS", "tpu") or not (devices and importlib.util.find_spec("libtpu")):
        return None
    if hosts == ["localhost"] or environment.get("TPU_SKIP_MDS_QUERY"):
        return None
    from jax._src import clusters  # JAX knows the metadata of a slice; there is no public name for it

    try:
        coordinator, count, index, _ = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, int(timeout)
        )
    except Exception as error:  # whatever requests raises for a metadata server that does not answer
        raise HostError(f"cannot tell which TPU slice this is ({error}); on a single host set --hosts=off") from error
    if coordinator is None:
        return None
    return Job(coordinator, count, index, "the TPU slice", tuple(hosts) if len(hosts) == count else ())


def wait_for_processes(job: Job, timeout: float) -> tuple[str, ...]:
    """Waits until every process of the job is there, and returns their host names by process number.

    Process 0 listens at the coordinator's address until all have said who they are, and then leaves it to JAX.

    Raises:
      HostError: not all came within `timeout` seconds; those missing are named, on every host that did come.
    """
    end = time.monotonic() + timeout
    return _listen(job, end, timeout) if job.index == 0 else _report(job, end, timeout)


def _listen(job: Job, end: float, timeout: float) -> tuple[str, ...]:
    port = int(job.coordinator.rsplit(":", 1)[1])
    names, callers = {0: socket.gethostname()}, []
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        listener = socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=min(job.count, 1024))
    except OSError as error:
        raise HostError(f"process 0 cannot listen at port {port}: {error}; choose another one in --hosts") from error
    problem = ""
    with listener, contextlib.ExitStack() as stack:
        while len(names) < job.count and not problem:
            try:
                listener.settimeout(max(end - time.monotonic(), 0.001))
                caller = stack.enter_context(listener.accept()[0])
                caller.settimeout(10)
                index, count, host = json.loads(caller.makefile().readline(4096))
            except TimeoutError:
                if time.monotonic() < end:
                    continue  # one that called and said nothing
                missing = [job.name(i) for i in range(job.count) if i not in names]
                more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
                problem = (
                    f"{', '.join(missing[:8])}{more} of {job.count} did not arrive at {job.coordinator} within "
                    f"{timeout:g} s: see whether the process runs there, and whether it reaches this address"
                )
                break
            except (ValueError, OSError):
                continue  # a stranger, such as a port scanner
            callers.append(caller)
            if index in names or count != job.count:
                problem = f"{host} calls itself process {index} of {count}, but "
                problem += f"{names[index]} is process {index}" if index in names else f"this job has {job.count}"
            names.setdefault(index, host)
        answer = {"problem": problem, "names": [] if problem else [names[i] for i in range(job.count)]}
        for caller in callers:
            with contextlib.suppress(OSError):
                caller.sendall(json.dumps(answer).encode() + b"\n")
        for caller in callers:
            with contextlib.suppress(OSError):
                caller.recv(1)  # they hang up first, so that the port is free at once
    if problem:
        raise HostError(problem)
    return tuple(answer["names"])


def _report(job: Job, end: float, timeout: float) -> tuple[str, ...]:
    host, port = job.coordinator.rsplit(":", 1)
    answer = None
    while answer is None:
        left = end - time.monotonic()
        if left <= 0:
            raise HostError(
                f"{job.name(0)}, the coordinator, did not answer at {job.coordinator} within {timeout:g} s: see "
                "whether it runs, and whether its name and port can be reached from here"
            )
        with (
            contextlib.suppress(OSError, ValueError),
            socket.create_connection((host, int(port)), timeout=left) as line,
        ):
            line.sendall(json.dumps([job.index, job.count, socket.gethostname()]).encode() + b"\n")
            line.settimeout(left + 10)  # so that the coordinator's list of those missing arrives first
            answer = json.loads(line.makefile().readline())
        if answer is None:
            time.sleep(min(0.2, timeout / 10))
    if answer["problem"]:
        raise HostError(answer["problem"])
    return tuple(answer["names"])
