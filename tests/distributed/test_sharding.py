"""Mesh and shardings on eight fake devices (in a subprocess), and a batch assembled by two processes."""

import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from glm_jax.distributed import sharding
from glm_jax.distributed.mesh import choose_mesh_shape, inference_mesh, make_mesh
from glm_jax.training import optimizer
from tests.helpers import two_processes
from tests.helpers.compiler_flags import DEVICES, fake_devices

EIGHT_DEVICES = f"{DEVICES}8" in os.environ.get("XLA_FLAGS", "")
on_eight_devices = pytest.mark.skipif(not EIGHT_DEVICES, reason="run in a subprocess")


@pytest.mark.skipif(EIGHT_DEVICES, reason="this is the subprocess")
@pytest.mark.thorough
def test_on_eight_devices():
    env = fake_devices(8)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "not two_processes"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


FREEZE = (("embedding", 0), ("bias", 0.5))


class Net(nn.Module):
    """Two arrays like those of the model: a table, and a stacked feed-forward layer."""

    embed: int = 16
    mlp: int = 256

    @nn.compact
    def __call__(self, x):
        def array(name, shape, axes):
            return self.param(name, nn.with_logical_partitioning(nn.initializers.normal(0.02), axes), shape)

        table = array("embedding", (8, self.embed), ("vocab", "embed"))
        kernel = array("kernel", (3, self.embed, self.mlp), ("layers", "embed", "mlp"))
        bias = array("bias", (3, self.mlp), ("layers", "mlp"))
        return ((table[x] @ kernel[0]) ** 2).sum() + bias[0].sum()


def make_state(tx, net, boxed):
    def init(key):
        params = net.init(key, jnp.zeros((2,), jnp.int32))["params"]
        return {
            "step": jnp.int32(0),
            "params": params,
            "opt_state": tx.init(params if boxed else sharding.unbox(params)),
        }

    return init


@on_eight_devices
@pytest.mark.parametrize(
    ("heads", "vocabulary", "tensor"), [(12, 30592, 4), (16, 30592, 8), (16, 50258, 2), (3, 4096, 1)]
)
def test_an_opened_model_is_split_as_far_as_heads_and_words_allow(heads, vocabulary, tensor):
    assert inference_mesh(heads, vocabulary).shape == {"data": 8 // tensor, "fsdp": 1, "tensor": tensor}


@on_eight_devices
def test_mesh_axes_are_auto():
    mesh = make_mesh({"data": 2, "fsdp": -1, "tensor": 2})
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert mesh.axis_types == (AxisType.Auto,) * 3


@on_eight_devices
def test_auto_mesh_and_its_explanation():
    assert dict(make_mesh("auto").shape) == {"data": 1, "fsdp": 8, "tensor": 1}
    shape, why = choose_mesh_shape(embed_size=12)
    assert shape == {"data": 2, "fsdp": 4, "tensor": 1}
    assert "8 cpu in 1 host(s): data=2 x fsdp=4 x tensor=1" in why
    assert "width 12 (8 does not)" in why


class FakeTPU:
    """A CPU device that claims to be one of four on a 2 x 2 TPU slice."""

    platform, device_kind, core_on_chip = "tpu", "TPU v5 lite", 0

    def __init__(self, device):
        self.device, self.id = device, device.id
        self.slice_index, position = divmod(device.id, 4)
        self.coords = (position % 2, position // 2, 0)

    def __getattr__(self, name):
        return getattr(self.device, name)


@on_eight_devices
def test_only_data_crosses_tpu_slices():
    devices = [FakeTPU(device) for device in jax.devices()]
    shape, why = choose_mesh_shape(devices)
    assert shape == {"data": 2, "fsdp": 4, "tensor": 1}
    assert "8 TPU v5 lite in 2 TPU slice(s)" in why
    mesh = make_mesh({"data": 4, "fsdp": 2}, devices)
    slices = [[device.slice_index for device in row] for row in mesh.devices.reshape(4, 2)]
    assert slices == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert mesh.axis_types == (AxisType.Auto,) * 3
    with pytest.raises(ValueError, match="over 2 TPU slices: data must be a multiple of 2"):
        make_mesh({"fsdp": 8}, devices)


@on_eight_devices
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"data": 2, "fsdp": 2}, r"data=2 x fsdp=2 x tensor=1 does not fit 8 devices \(.*multiply to 4\).*-1"),
        ({"data": 3, "fsdp": -1}, "does not fit 8 devices"),
        ({"data": -1, "fsdp": -1}, "only one axis"),
        ({"model": 8}, r"\['model'\] do not exist; there are data, fsdp, tensor"),
        ({"data": 0}, "data = 0"),
        ({"data": 2.0}, "data = 2.0"),
        ("2x4", "'auto' or sizes"),
    ],
)
def test_mesh_refuses(shape, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(shape)


def test_partition_spec():
    spec = sharding.partition_spec
    assert spec(("batch", "sequence")) == PartitionSpec(("data", "fsdp"), None)
    assert spec(("layers", "embed", "qkv", "heads", "head_dim")) == PartitionSpec(None, "fsdp", None, "tensor", None)
    assert spec(("embed", None)) == PartitionSpec("fsdp", None)
    assert spec(("vocab",), sharding.RULES | {"vocab": ("fsdp", "tensor")}) == PartitionSpec(("fsdp", "tensor"))


@pytest.mark.parametrize(
    ("axes", "rules", "message"),
    [
        (("layers", "embedd"), sharding.RULES, "kernel: logical axis 'embedd' has no rule .nearest: embed"),
        (("embed", "embed"), sharding.RULES, "'embed' and 'embed' are both split over 'fsdp'"),
        (("embed", "mlp"), sharding.RULES | {"mlp": "fsdp"}, "'embed' and 'mlp' are both split over 'fsdp'"),
        (("embed",), {"embed": "model"}, "no mesh axis 'model'"),
    ],
)
def test_partition_spec_refuses(axes, rules, message):
    with pytest.raises(ValueError, match=message):
        sharding.partition_spec(axes, rules, "kernel")


@on_eight_devices
@pytest.mark.parametrize(
    ("name", "boxed", "lr_multipliers"),
    [
        ("adamw", True, ()),
        ("adamw", False, FREEZE),
        ("adafactor", True, FREEZE),
        ("adafactor", False, ()),
    ],
)
def test_state_follows_the_parameters(name, boxed, lr_multipliers):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    net = Net(embed=128)
    names = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((2,), jnp.int32))["params"]
    tx = optimizer.make_optimizer(names, 0.01, name=name, lr_multipliers=lr_multipliers)
    init = make_state(tx, net, boxed)
    abstract = jax.eval_shape(init, jax.random.key(0))
    shardings = sharding.state_shardings(abstract, mesh)
    with jax.set_mesh(mesh), sharding.logical_axis_rules():
        state = jax.jit(lambda key: sharding.unbox(init(key)), out_shardings=shardings)(jax.random.key(0))
    expected = {
        "embedding": PartitionSpec("tensor", "fsdp"),
        "kernel": PartitionSpec(None, "fsdp", "tensor"),
        "bias": PartitionSpec(None, "tensor"),
    }
    assert {key: leaf.sharding.spec for key, leaf in state["params"].items()} == expected
    assert state["params"]["kernel"].addressable_shards[0].data.shape == (3, 64, 128)
    found = 0
    shapes = {key: leaf.shape for key, leaf in state["params"].items()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state["opt_state"]):
        key = getattr(path[-1], "key", None)
        if leaf.size > 1 and leaf.shape == shapes.get(key):
            found += 1
            assert leaf.sharding.spec == expected[key], path
        else:
            assert leaf.sharding.is_fully_replicated, path
    frozen = 1 if lr_multipliers else 0
    assert found == (2 * (3 - frozen) if name == "adamw" else 2 - frozen)  # Adafactor factors the kernel
    table = sharding.describe(shardings, abstract)
    assert "params/kernel" in table
    assert f"{3 * 64 * 128 * 4:,} B" in table
    assert "params/kernel" in sharding.describe(shardings)

    @jax.jit
    def step(state):
        gradients = jax.grad(lambda p: net.apply({"params": p}, jnp.arange(8)))(state["params"])
        updates, opt_state = tx.update(gradients, state["opt_state"], state["params"])
        return {
            "step": state["step"] + 1,
            "params": optax.apply_updates(state["params"], updates),
            "opt_state": opt_state,
        }

    with jax.set_mesh(mesh), sharding.logical_axis_rules():
        after = jax.jit(step, out_shardings=shardings)(state)
    one = jax.device_put(sharding.unbox(init(jax.random.key(0))), jax.devices()[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after["params"], step(one)["params"]
    )


@on_eight_devices
def test_state_shardings_refuse():
    mesh = make_mesh({"fsdp": 8})
    tx = optax.adam(0.1)
    abstract = jax.eval_shape(make_state(tx, Net(embed=12), False), jax.random.key(0))
    with pytest.raises(ValueError, match=r"^embedding \(8, 12\): dimension 1 \('embed'\) of size 12 .* fsdp=8"):
        sharding.state_shardings(abstract, mesh)
    abstract = jax.eval_shape(make_state(tx, Net(), False), jax.random.key(0))
    with pytest.raises(ValueError, match=r"extra .4,. has no logical axes"):
        sharding.state_shardings(abstract | {"extra": jax.ShapeDtypeStruct((4,), jnp.float32)}, mesh)
    with pytest.raises(ValueError, match=r"^bias: logical axis 'mlp' has no rule"):
        sharding.state_shardings(abstract, mesh, {k: v for k, v in sharding.RULES.items() if k != "mlp"})


@on_eight_devices
def test_with_shardings():
    mesh = make_mesh({"fsdp": 8})
    abstract = jax.eval_shape(make_state(optax.adam(0.1), Net(), False), jax.random.key(0))
    shardings = sharding.state_shardings(abstract, mesh)
    target = sharding.with_shardings(abstract, shardings)
    assert jax.tree.map(lambda leaf: leaf.sharding, target) == shardings
    assert target["params"]["kernel"].shape == (3, 16, 256)


@on_eight_devices
def test_host_to_device():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    rows = np.arange(24, dtype=np.int32).reshape(8, 3)
    batch = sharding.host_to_device({"tokens": rows, "objective": rows[:, 0]}, mesh)
    assert batch["tokens"].sharding.spec == PartitionSpec(("data", "fsdp"))
    assert batch["tokens"].addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(batch["tokens"], rows)
    np.testing.assert_array_equal(batch["objective"], rows[:, 0])
    assert sharding.process_shard(mesh) == (0, 1)
    assert sharding.local_batch_size(8, mesh) == 8
    with pytest.raises(ValueError, match=r"batch of 6 examples on mesh .* multiple of the 4 batch shards; take 8"):
        sharding.host_to_device(rows[:6], mesh)
    with pytest.raises(ValueError, match="different numbers of rows"):
        sharding.host_to_device((rows, rows[:4]), mesh)
    with pytest.raises(ValueError, match="batch of 0"):
        sharding.local_batch_size(0, mesh)


TWO_PROCESSES = """
import sys, jax, numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from glm_jax.distributed import sharding
from glm_jax.distributed.mesh import choose_mesh_shape, make_mesh
rows = np.arange(8 * 3).reshape(8, 3)
assert choose_mesh_shape()[0] == {"data": 2, "fsdp": 4, "tensor": 1}, choose_mesh_shape()
for shape, parts in (({"data": 2, "fsdp": 4}, 2), ({"data": 1, "tensor": 8}, 1), ({"fsdp": 4, "tensor": 2}, 2)):
    mesh = make_mesh(shape)
    index, count = sharding.process_shard(mesh)
    assert (index, count) == (jax.process_index() if parts == 2 else 0, parts), (shape, index, count)
    size = sharding.local_batch_size(8, mesh)
    batch = sharding.host_to_device(rows[index * size : (index + 1) * size], mesh)
    assert batch.shape == (8, 3)
    whole = jax.jit(lambda a: a, out_shardings=sharding.replicated(mesh))(batch)
    np.testing.assert_array_equal(whole.addressable_data(0), rows)
print("assembled")
"""


def test_batch_of_two_processes():
    outputs = two_processes.run(TWO_PROCESSES, 4)
    assert all("assembled" in output for output in outputs), "\n".join(outputs)
