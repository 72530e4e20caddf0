"""Checkpoints: exact round trips, other meshes, kills, damage, rotation; and the small files beside them."""

import logging
import os
import shutil
import subprocess
import sys

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.training import optimizer
from glm_jax.training.checkpoint import Checkpointer, CheckpointError
from glm_jax.training.checksum import checksums
from tests.helpers import two_processes
from tests.helpers.compiler_flags import fake_devices

DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@flax.struct.dataclass
class TrainState:
    step: jax.Array
    params: dict
    opt_state: object


def make_state(seed=0, width=64):
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "embedding": jax.random.normal(keys[0], (width, 32)),
        "layers": {"kernel": jax.random.normal(keys[1], (2, 32, 8)), "bias": jax.random.normal(keys[2], (2, 8))},
    }
    tx = optimizer.make_optimizer(params, 0.1, lr_multipliers=[("embedding", 0)])
    return TrainState(jnp.int32(seed), params, tx.init(params))


def abstract(tree, sharding=DEVICE):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_round_trip_is_bitwise(tmp_path):
    state = make_state(3)
    extras = {"nan": jnp.asarray([jnp.nan, -0.0, jnp.inf]), "half": jnp.arange(5, dtype=jnp.bfloat16) / 3}
    extras |= {"key": jax.random.key(7), "flag": jnp.asarray([True, False]), "byte": jnp.arange(3, dtype=jnp.uint8)}
    whole = {"params": state.params, "train": state, "extras": extras}
    with Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(3, whole, {"next_index": 12, "epoch": [1, 2]}, {"loss": 2.5})
        restored = checkpointer.restore(abstract(whole))
    assert_same(restored.state, whole)
    assert isinstance(restored.state["train"], TrainState)
    assert (restored.step, restored.data_position, restored.metrics) == (
        3,
        {"next_index": 12, "epoch": [1, 2]},
        {"loss": 2.5},
    )
    assert restored.path == str(tmp_path / "run" / "3")
    assert f"step 3 from {restored.path} (parameter checksum {restored.checksum})" in str(restored)


def test_parameters_alone(tmp_path):
    states = {step: make_state(step) for step in (1, 2)}
    with Checkpointer(tmp_path) as checkpointer:
        for step, state in states.items():
            checkpointer.save(step, state, {})
        whole = checkpointer.restore(abstract(states[2]))
    with Checkpointer(tmp_path, read_only=True) as reader:
        params = reader.restore_params(abstract(states[2].params))
        assert_same(params.state, states[2].params)
        assert params.checksum == whole.checksum
        assert_same(reader.restore_params(abstract(states[1].params), 1).state, states[1].params)
        with pytest.raises(ValueError, match="read-only"):
            reader.save(3, states[1], {})


def test_reader_follows_a_running_writer(tmp_path):
    state = make_state()
    with Checkpointer(tmp_path) as writer, Checkpointer(tmp_path, read_only=True) as reader:
        assert reader.steps() == []
        writer.save(1, state, {})
        writer.wait()
        assert reader.steps() == [1]


def test_saved_state_is_that_of_the_call(tmp_path):
    """The writing goes on while the next steps reuse (donate) the buffers."""
    state = jax.tree.map(lambda x: x + 0, make_state(1))
    expected = jax.device_get(state)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, {})
        for _ in range(5):
            state = step(state)
        assert_same(checkpointer.restore(abstract(state)).state, expected)


RESHARD = """
import sys, jax, numpy as np
from glm_jax.training import checkpoint
from glm_jax.distributed import sharding
from glm_jax.distributed.mesh import make_mesh
import flax.linen as nn, jax.numpy as jnp
def init(key):
    kernel = nn.LogicallyPartitioned(jax.random.normal(key, (16, 32)), ("embed", "mlp"))
    return {"step": jnp.int32(5), "params": {"kernel": kernel}}
def state_on(shape):
    mesh = make_mesh(shape)
    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = sharding.state_shardings(shapes, mesh)
    state = jax.jit(lambda key: sharding.unbox(init(key)), out_shardings=shardings)(jax.random.key(0))
    return state, sharding.with_shardings(shapes, shardings)
state, target = state_on({"fsdp": 8})
assert state["params"]["kernel"].addressable_shards[0].data.shape == (2, 32)
with checkpoint.Checkpointer(sys.argv[1]) as checkpointer:
    checkpointer.save(5, state, {})
    before = checkpointer.restore(target)
for shape, shard in (({"fsdp": 2, "tensor": 4}, (8, 8)), ({"data": 8}, (16, 32))):
    other, target = state_on(shape)
    with checkpoint.Checkpointer(sys.argv[1], read_only=True) as checkpointer:
        restored = checkpointer.restore(target)
    kernel = restored.state["params"]["kernel"]
    assert kernel.sharding == target["params"]["kernel"].sharding, kernel.sharding
    assert kernel.addressable_shards[0].data.shape == shard
    assert np.asarray(kernel).tobytes() == np.asarray(state["params"]["kernel"]).tobytes()
    assert restored.checksum == before.checksum
print(before.checksum)
"""


@pytest.mark.thorough
def test_restore_onto_other_meshes(tmp_path):
    env = fake_devices(8)
    command = [sys.executable, "-c", RESHARD, str(tmp_path)]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    # One device, in this process: fewer than wrote it.
    target = abstract({"step": jnp.int32(0), "params": {"kernel": jnp.zeros((16, 32))}})
    with Checkpointer(tmp_path, read_only=True) as checkpointer:
        assert checkpointer.restore(target).checksum == result.stdout.split()[-1]


KILLED = """
import os, pathlib, signal, sys, jax
from glm_jax.training import checkpoint
state = {"params": {"kernel": jax.random.normal(jax.random.key(0), (8_000_000,))}}
checkpointer = checkpoint.Checkpointer(sys.argv[1])
checkpointer.save(1, state, {"next_index": 1})
checkpointer.wait()
checkpointer.save(2, state, {"next_index": 2})
step = pathlib.Path(sys.argv[1])
while not list(step.glob("2.*tmp*/state*/*")) and not (step / "2").exists():
    pass
print(os.listdir(step), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_during_a_save_leaves_the_last_good_step(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == -9, result.stderr
    assert "2.orbax-checkpoint-tmp" in result.stdout  # it was in the middle
    assert any("tmp" in name for name in os.listdir(tmp_path))
    target = abstract({"params": {"kernel": jnp.zeros((8_000_000,))}})
    with Checkpointer(tmp_path, read_only=True) as reader:
        assert reader.steps() == [1]
    assert any("tmp" in name for name in os.listdir(tmp_path))  # a reader removes nothing
    with Checkpointer(tmp_path) as checkpointer:
        restored = checkpointer.restore(target)
        assert (restored.step, restored.data_position) == (1, {"next_index": 1})
        checkpointer.save(2, restored.state, {"next_index": 2})
        checkpointer.wait()
        assert checkpointer.steps() == [1, 2]
    assert not any("tmp" in name for name in os.listdir(tmp_path))


def largest_file(step_path):
    return max(
        (path for path in (step_path / "state").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


def truncate(step_path):
    path = largest_file(step_path)
    path.write_bytes(path.read_bytes()[:100])


def flip_one_bit(step_path):
    path = largest_file(step_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove_state(step_path):
    shutil.rmtree(step_path / "state")


def remove_data(step_path):
    shutil.rmtree(step_path / "data")


def empty_metadata(step_path):
    (step_path / "state" / "_METADATA").write_text("")


@pytest.mark.parametrize("damage", [truncate, flip_one_bit, remove_state, remove_data, empty_metadata])
def test_damaged_newest_falls_back(tmp_path, caplog, damage):
    states = {step: make_state(step, width=512) for step in (1, 2, 3)}
    with Checkpointer(tmp_path, max_to_keep=3) as checkpointer:
        for step, state in states.items():
            checkpointer.save(step, state, {"next_index": step})
    damage(tmp_path / "3")
    with (
        Checkpointer(tmp_path, max_to_keep=1) as checkpointer,
        caplog.at_level(logging.ERROR, "glm_jax.training.checkpoint"),
    ):
        restored = checkpointer.restore(abstract(states[1]))
        assert (restored.step, restored.data_position) == (2, {"next_index": 2})
        assert_same(restored.state, states[2])
        assert "DAMAGED" in caplog.text
        assert "step 3" in caplog.text
        with pytest.raises(CheckpointError, match="step 3"):
            checkpointer.restore(abstract(states[1]), 3)
        assert sorted(os.listdir(tmp_path)) == ["1", "2", "3"]  # nothing is renamed by reading
        checkpointer.save(3, states[3], {"next_index": 3})  # training comes to step 3 once more
        checkpointer.wait()
        assert_same(checkpointer.restore(abstract(states[1])).state, states[3])
        assert sorted(os.listdir(tmp_path)) == ["3", "3.damaged"]


def test_rotation_after_damage_keeps_the_good_step(tmp_path):
    """The damaged step 3 must not count as the newest, or max_to_keep = 1 would delete the step just saved."""
    states = {step: make_state(step) for step in (1, 3)}
    with Checkpointer(tmp_path) as checkpointer:
        for step, state in states.items():
            checkpointer.save(step, state, {})
    truncate(tmp_path / "3")
    with Checkpointer(tmp_path, max_to_keep=1) as checkpointer:
        checkpointer.restore(abstract(states[1]))
        checkpointer.save(2, states[1], {})
        checkpointer.wait()
        assert checkpointer.steps() == [2]
        assert checkpointer.restore(abstract(states[1])).step == 2


def test_all_damaged(tmp_path):
    state = make_state()
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, {})
        checkpointer.wait()
        truncate(tmp_path / "1")
        with pytest.raises(CheckpointError, match=r"no readable checkpoint.*step 1"):
            checkpointer.restore(abstract(state))


@pytest.mark.parametrize(
    ("mode", "losses", "kept", "best"),
    [
        ("min", [5.0, 1.0, 4.0, 3.0, 2.0], [2, 4, 5], 2),
        ("max", [5.0, 1.0, 4.0, 3.0, 2.0], [1, 4, 5], 1),
        ("min", [5.0, float("nan"), None, 3.0, 4.0], [4, 5], 4),
        ("min", [3.0, 3.0, 4.0, None, None], [2, 4, 5], 2),
        ("min", [None] * 5, [4, 5], None),
    ],
)
def test_keep_best_and_last(tmp_path, mode, losses, kept, best):
    def open_again():
        return Checkpointer(tmp_path, max_to_keep=2, keep_best=("loss", mode))

    state = {"params": {"bias": jnp.zeros(3)}}
    for steps in ((1, 2, 3), (4, 5)):  # the best one must also survive a restart
        with open_again() as checkpointer:
            for step in steps:
                loss = losses[step - 1]
                metrics = None if loss is None else {"loss": loss, "accuracy": 0.5}
                checkpointer.save(step, state, {"next_index": step}, metrics)
    with open_again() as checkpointer:
        assert checkpointer.steps() == kept
        assert checkpointer.best_step() == best
        if best is None:
            with pytest.raises(CheckpointError, match=r"'best'.*\[4, 5\]"):
                checkpointer.restore(abstract(state), "best")
        else:
            restored = checkpointer.restore(abstract(state), "best")
            assert (restored.step, restored.data_position) == (best, {"next_index": best})
        assert checkpointer.restore(abstract(state)).step == 5


@pytest.mark.parametrize("content", [b'{"loss": 0.', b"[1]", b"\xff\xfe", b'{"loss": "low"}'])
def test_damaged_metrics_cost_no_checkpoint(tmp_path, caplog, content):
    """The state has its own checksum: it is restored, and the step is only no longer the best."""
    states = {step: make_state(step) for step in (1, 2)}
    with Checkpointer(tmp_path, keep_best=("loss", "min")) as checkpointer:
        for step, state in states.items():
            checkpointer.save(step, state, {}, {"loss": 1 / step})
    (tmp_path / "2/metrics/metrics").write_bytes(content)
    with caplog.at_level(logging.ERROR, "glm_jax.training.checkpoint"):
        for read_only in (True, False):
            with Checkpointer(tmp_path, keep_best=("loss", "min"), read_only=read_only) as checkpointer:
                restored = checkpointer.restore(abstract(states[1]))
                assert (restored.step, restored.metrics) == (2, {})
                assert_same(restored.state, states[2])
                assert checkpointer.best_step() == 1
    assert "DAMAGED metrics of step 2" in caplog.text


def test_error_of_a_background_save_is_raised(tmp_path, monkeypatch):
    state = make_state()
    checkpointer = Checkpointer(tmp_path, max_to_keep=1)
    checkpointer.save(1, state, {})
    checkpointer.wait()
    monkeypatch.setattr("os.rename", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("disk is gone")))
    monkeypatch.setattr("os.replace", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("disk is gone")))
    checkpointer.save(2, state, {})
    with pytest.raises(OSError, match="disk is gone"):
        checkpointer.wait()
    monkeypatch.undo()
    assert checkpointer.steps() == [1]  # what step 2 was to replace is still there
    assert_same(checkpointer.restore(abstract(state)).state, state)
    checkpointer.save(2, state, {})
    checkpointer.close()
    with Checkpointer(tmp_path, read_only=True) as reader:
        assert reader.steps() == [2]
        assert not reader.reached_preemption(2)


def test_structure_mismatch_is_told_before_reading(tmp_path):
    state = make_state()
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, {})
        with pytest.raises(ValueError, match=r"params/embedding: saved float32\[64, 32\], expected float32\[65, 32\]"):
            checkpointer.restore(abstract(make_state(width=65)))
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.params)
        with pytest.raises(ValueError, match=r"params/embedding: saved float32\[64, 32\], expected bfloat16\[64, 32\]"):
            checkpointer.restore_params(abstract(half))
        with pytest.raises(ValueError, match=r"opt_state.*expected nothing.* or restore its parameters only"):
            checkpointer.restore(abstract(state.replace(opt_state=())))
        with pytest.raises(ValueError, match="params/extra: saved nothing"):
            checkpointer.restore_params(abstract(state.params | {"extra": jnp.zeros(2)}))
        with pytest.raises(ValueError, match="step of the abstract state has no sharding"):
            checkpointer.restore(jax.eval_shape(lambda: state))


def test_refuses_before_writing(tmp_path):
    state = {"params": {"bias": jnp.zeros(3)}}
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(ValueError, match="must be JSON"):
            checkpointer.save(1, state, {"index": object()})
        with pytest.raises(ValueError, match="must be JSON"):
            checkpointer.save(1, state, {}, {"loss": "low"})
        with pytest.raises(CheckpointError, match="there are none"):
            checkpointer.restore(abstract(state))
        checkpointer.save(1, state, {})
        with pytest.raises(ValueError, match="step 1 is already in"):
            checkpointer.save(1, state, {})
        with pytest.raises(CheckpointError, match=r"step 7.*\[1\]"):
            checkpointer.restore(abstract(state), 7)
    with pytest.raises(ValueError, match="max_to_keep = 0"):
        Checkpointer(tmp_path, max_to_keep=0)
    with pytest.raises(ValueError, match="keep_best"):
        Checkpointer(tmp_path, keep_best=("loss", "lowest"))
    with pytest.raises(CheckpointError, match="does not exist"):
        Checkpointer(tmp_path / "absent", read_only=True)


def test_checksum_sees_every_bit_place_and_name():
    def checksum(**params):
        return checksums({"params": params})["params"]

    a, b = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), np.ones((3, 4), np.float32)
    original = checksum(a=jnp.asarray(a), b=jnp.asarray(b))
    assert checksum(a=jnp.asarray(b), b=jnp.asarray(a)) != original
    assert checksum(a=jnp.asarray(a[::-1].copy()), b=jnp.asarray(b)) != original
    for bit in range(a.nbytes * 8):
        wrong = bytearray(a.tobytes())
        wrong[bit // 8] ^= 1 << bit % 8
        wrong = np.frombuffer(bytes(wrong), np.float32).reshape(3, 4)
        assert checksum(a=jnp.asarray(wrong), b=jnp.asarray(b)) != original, bit


TWO_PROCESSES = """
import os, sys, jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from glm_jax.training import checkpoint
from glm_jax.distributed import sharding
from glm_jax.distributed.mesh import make_mesh
import flax.linen as nn
mesh = make_mesh("auto")
def init(key):
    kernel = nn.LogicallyPartitioned(jax.random.normal(key, (64, 32)), ("embed", "mlp"))
    return {"step": jnp.int32(5), "params": {"kernel": kernel}}
shapes = jax.eval_shape(init, jax.random.key(0))
shardings = sharding.state_shardings(shapes, mesh)
make = jax.jit(lambda key: sharding.unbox(init(key)), out_shardings=shardings)
with checkpoint.Checkpointer(sys.argv[3], max_to_keep=3) as checkpointer:
    for step in (1, 2):
        checkpointer.save(step, make(jax.random.key(step)), {"next_index": step})
    checkpointer.wait()
    if jax.process_index() == 0:
        files = (os.path.join(d, f) for d, _, fs in os.walk(sys.argv[3] + "/2/state") for f in fs)
        largest = max(files, key=os.path.getsize)
        open(largest, "wb").close()
    jax.experimental.multihost_utils.sync_global_devices("damaged")
    restored = checkpointer.restore(sharding.with_shardings(shapes, shardings))
    assert restored.step == 1, restored
    expected = make(jax.random.key(1))["params"]["kernel"]
    for a, b in zip(restored.state["params"]["kernel"].addressable_shards, expected.addressable_shards):
        np.testing.assert_array_equal(a.data, b.data)
    checkpointer.save(2, restored.state, {"next_index": 2})
    checkpointer.wait()
    assert checkpointer.steps() == [1, 2]
print("saved and restored", restored.checksum)
"""


def test_two_processes(tmp_path):
    outputs = two_processes.run(TWO_PROCESSES, 2, str(tmp_path))
    assert all("saved and restored" in output for output in outputs), "\n".join(outputs)
    assert sorted(os.listdir(tmp_path)) == ["1", "2", "2.damaged"]
