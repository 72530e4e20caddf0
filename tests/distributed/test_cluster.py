"""Which job a process belongs to, and who is missing from it."""

import socket
import threading
import time

import pytest

from glm_jax.distributed import cluster
from glm_jax.distributed.cluster import HostError, Job, find_job, wait_for_processes
from tests.helpers import two_processes

SLURM = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_NODELIST": "gpu[09-10],big1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def test_a_slurm_step_says_everything():
    job = find_job("auto", SLURM, 1)
    assert (job.count, job.index, job.source) == (6, 3, "SLURM")
    assert job.names == ("gpu09", "gpu09", "gpu10", "gpu10", "big1", "big1")
    host, port = job.coordinator.split(":")
    assert host == "gpu09"
    assert 61440 <= int(port) < 65536
    assert job.local_devices is None
    assert find_job("auto", SLURM | {"SLURM_JOB_ID": "1235"}, 1).coordinator != job.coordinator


def test_tasks_of_a_node_share_its_gpus():
    shared = SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert find_job("slurm", shared, 1).local_devices == (2, 3)
    assert find_job("slurm", SLURM | {"CUDA_VISIBLE_DEVICES": "1"}, 1).local_devices is None  # bound by SLURM
    assert find_job("slurm", shared | {"SLURM_GPUS_PER_TASK": "4"}, 1).local_devices is None  # likewise
    alone = shared | {"SLURM_STEP_TASKS_PER_NODE": "1,4,1", "SLURM_NODEID": "0"}
    assert find_job("slurm", alone, 1).local_devices is None
    crowded = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3(x2)", "SLURM_STEP_NODELIST": "a,b"}
    with pytest.raises(ValueError, match="3 tasks on a node with 2 GPUs"):
        find_job("slurm", crowded | {"CUDA_VISIBLE_DEVICES": "0,1"}, 1)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node1", ["node1"]),
        ("a1,b2", ["a1", "b2"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("n[1,3-4]-ib,m[001]", ["n1-ib", "n3-ib", "n4-ib", "m001"]),
    ],
)
def test_node_lists(text, names):
    assert cluster.expand_nodes(text) == names


def test_the_setting_wins():
    assert find_job("off", SLURM, 1) is None
    assert find_job("auto", {}, 1) is None
    assert find_job("auto", SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, 1) is None
    assert find_job("node1:99,4,2", SLURM, 1) == Job("node1:99", 4, 2, "its setting")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("many", 'must be "auto", "off"'),
        ("node1,4,2", 'must be "auto", "off"'),
        ("node1:99,4,4", "process 4 is not one of 4; they are numbered from 0"),
        ("slurm", "in no slurm step|no slurm step of several tasks"),
        ("tpu", "no tpu slice of several hosts"),
    ],
)
def test_settings_that_cannot_be(setting, message):
    with pytest.raises(ValueError, match=message):
        find_job(setting, {"JAX_PLATFORMS": "cpu"}, 1)


def _call(jobs, timeout):
    """What each job's roll call returns or raises."""
    results = [None] * len(jobs)

    def call(i):
        try:
            results[i] = wait_for_processes(jobs[i], timeout)
        except HostError as error:
            results[i] = error

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_all_come_and_know_each_other():
    address = two_processes.free_address()
    jobs = [Job(address, 3, i, "a test") for i in (2, 1, 0)]
    assert _call(jobs, 20) == [(socket.gethostname(),) * 3] * 3
    socket.create_server(("", int(address.split(":")[1]))).close()  # the port is free for JAX


def test_a_stranger_at_the_port_is_ignored():
    address = two_processes.free_address()
    host, port = address.split(":")

    def scan():
        for _ in range(50):
            try:
                with socket.create_connection((host, int(port)), 1) as line:
                    line.sendall(b"GET / HTTP/1.1\n")
                return
            except OSError:
                time.sleep(0.05)

    threading.Thread(target=scan).start()
    late = threading.Timer(1, lambda: wait_for_processes(Job(address, 2, 1, ""), 10))
    late.start()
    assert len(wait_for_processes(Job(address, 2, 0, ""), 20)) == 2
    late.join()


def test_who_never_arrives_is_named_on_every_host_that_came():
    address = two_processes.free_address()
    names = ("gpu1", "gpu2", "gpu3", "gpu4")
    results = _call([Job(address, 4, i, "a test", names) for i in (0, 2)], 1)
    for error in results:
        assert str(error).startswith(f"gpu2 (process 1), gpu4 (process 3) of 4 did not arrive at {address} within 1 s")
    error = _call([Job(address, 4, 1, "a test", names)], 0.5)[0]
    assert str(error).startswith(f"gpu1 (process 0), the coordinator, did not answer at {address} within 0.5 s")


def test_two_that_claim_one_number_are_told():
    address = two_processes.free_address()
    results = _call([Job(address, 3, i, "a test") for i in (0, 1, 1)], 10)
    assert all("calls itself process 1 of 3, but" in str(error) for error in results)
    address = two_processes.free_address()
    results = _call([Job(address, 2, 0, ""), Job(address, 3, 1, "")], 10)
    assert all("calls itself process 1 of 3, but this job has 2" in str(error) for error in results)
