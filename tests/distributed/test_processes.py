"""Two processes of one job: what differs, fails or is missing is told by name, and both stop at the same step."""

import re

import pytest

from glm_jax.distributed import processes
from glm_jax.distributed.processes import HostError
from tests.helpers import two_processes

TWO_PROCESSES = """
import os, sys, time
address, me, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
from glm_jax.distributed import processes
processes.start(f"{address},2,{me}", 60)
import jax
from jax.experimental import multihost_utils
assert jax.process_count() == 2 and jax.process_index() == me

def told(call, *arguments):
    try:
        call(*arguments)
    except Exception as error:
        print("TOLD", type(error).__name__, error, flush=True)

assert processes.allgather_text("greeting", f"I am {me}") == ["I am 0", "I am 1"]
processes.check_agreement({"config": {"batch_size": 8}})
told(processes.check_agreement, {"config": {"batch_size": 8 + me, "data": {"seed": 0} if me else {}, "same": 1}})

from glm_jax.data.token_store import TokenStore
def open_store():
    with processes.all_or_none("opening the text"):
        TokenStore(f"{folder}/{me}")
told(open_store)

def look():
    found = os.path.exists(folder + "/mark")
    open(folder + "/mark", "w").close()
    return found
assert processes.primary_first("looking", look) == bool(me)

if me == 1:
    os.kill(os.getpid(), 15)
step = 1
while not multihost_utils.reached_preemption_sync_point(step):
    step += 1
    time.sleep(0.02)
steps = processes.allgather_text("stop", str(step))
assert steps[0] == steps[1], steps

if me == 0:
    told(processes.allgather_text, "meeting", "", 1.0)
time.sleep(3 if me == 0 else 2)  # process 0 holds the job
print("done", flush=True)
os._exit(0)  # the meeting that failed has ended the job
"""


def _write_store(folder, shards):
    """A folder as `prepare` leaves it, of two shards, without those that are missing."""
    import json

    import numpy as np

    folder.mkdir()
    np.save(folder / "lengths.npy", np.array([1, 1]))
    np.save(folder / "counts.npy", np.array([2]))
    (folder / "index.json").write_text(json.dumps({"shard_documents": [1, 1]}))
    for shard in shards:
        (folder / f"shard-{shard:05d}.array_record").touch()


@pytest.mark.thorough
def test_two_hosts_tell_what_is_wrong(tmp_path):
    _write_store(tmp_path / "0", [0, 1])
    _write_store(tmp_path / "1", [0])
    outputs = two_processes.run(TWO_PROCESSES, 1, str(tmp_path))
    told = [re.findall(r"^TOLD (.*)", output, re.M) for output in outputs]
    assert all("done" in output for output in outputs), "\n".join(outputs)
    for lines in told:
        differ = r"HostError processes differ: config.batch_size is 9 on .+ \(process 1\), 8 on .+ \(process 0\)"
        assert re.match(differ, lines[0])
        assert "config.data.seed is 0" in lines[0]
        assert "same" not in lines[0].split("Start all")[0]
    missing = r"DataError:? .*1/shard-00001\.array_record is missing"
    assert re.match(r"HostError opening the text failed on .+ \(process 1\): " + missing, told[0][1])
    assert re.match(missing, told[1][1])
    assert re.match(r"HostError meeting: .+ \(process 1\) did not arrive within 1 s", told[0][2])


def test_alone_nothing_is_waited_for():
    assert processes.allgather_text("greeting", "x") == ["x"]
    processes.check_agreement({"config": 1})
    assert processes.primary_first("looking", lambda: 3) == 3
    with pytest.raises(KeyError), processes.all_or_none("looking"):
        raise KeyError


def test_what_went_wrong_here_is_said_though_the_others_are_lost(monkeypatch):
    def lost(*arguments):
        raise HostError("host1 did not arrive")

    monkeypatch.setattr(processes, "allgather_text", lost)
    with pytest.raises(OSError, match="disk is full"), processes.all_or_none("saving"):
        raise OSError("disk is full")
    with pytest.raises(HostError, match="host1"), processes.all_or_none("saving"):
        pass


def test_start_takes_the_environment(monkeypatch):
    monkeypatch.setenv("GLM_JAX_HOST_TIMEOUT", "5m")
    with pytest.raises(ValueError, match="GLM_JAX_HOST_TIMEOUT = '5m' must be a number of seconds"):
        processes.start()
    monkeypatch.delenv("GLM_JAX_HOST_TIMEOUT")
    monkeypatch.setenv("GLM_JAX_HOSTS", "nonsense")
    with pytest.raises(ValueError, match="'nonsense' must be"):
        processes.start()
    monkeypatch.setenv("GLM_JAX_HOSTS", f"{two_processes.free_address()},2,0")
    monkeypatch.setenv("GLM_JAX_HOST_TIMEOUT", "0.2")
    with pytest.raises(HostError, match=r"process 1 of 2 did not arrive at .* within 0\.2 s"):
        processes.start()
