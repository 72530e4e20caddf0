"""The head fused with its cross entropy: equal to the logits' own loss, however it is cut and wherever it runs."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.model import fused_cross_entropy
from glm_jax.model.fused_cross_entropy import fused_linear_cross_entropy
from glm_jax.model.losses import accuracy, cross_entropy
from tests.helpers.compiler_flags import fake_devices
from tests.helpers.paths import ROOT

ROWS, SLOTS, WIDTH, WORDS = 4, 20, 16, 96


def inputs(seed=0, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 4)
    hidden = jax.random.normal(keys[0], (ROWS, SLOTS, WIDTH)).astype(dtype)
    table = jax.random.normal(keys[1], (WORDS, WIDTH))
    ids = jax.random.randint(keys[2], (ROWS, SLOTS), 0, WORDS)
    used = jnp.arange(SLOTS)[None, :] < jnp.array([20, 3, 0, 11])[:, None]
    return hidden, table, ids, jax.random.uniform(keys[3], (ROWS, SLOTS), minval=0.5) * used


def by_logits(hidden, table, ids, weights, smoothing):
    logits = jnp.einsum("bkd,vd->bkv", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return cross_entropy(logits, ids, weights, smoothing)[0]


def gradients(actual):
    return jax.value_and_grad(actual, argnums=(0, 1))


@pytest.mark.thorough
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("part", [7, 16, 1000])
def test_equals_the_loss_of_the_logits(part, smoothing, monkeypatch):
    """34 of 80 slots are used: five parts of 7 run, or three of 12, each with slots left; 1,000 take all at once."""
    monkeypatch.setattr(fused_cross_entropy, "_SMALL_CHUNK", part)
    hidden, table, ids, weights = inputs()

    def fused(hidden, table):
        return fused_linear_cross_entropy(hidden, table, ids, weights, label_smoothing=smoothing).total

    expected = gradients(lambda h, t: by_logits(h, t, ids, weights, smoothing))(hidden, table)
    for compiled in (fused, jax.jit(fused)):
        actual = gradients(compiled)(hidden, table)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), actual, expected)
    doubled = jax.grad(lambda h: 2.0 * fused(h, table))(hidden)
    np.testing.assert_allclose(doubled, 2.0 * expected[1][0], rtol=2e-5, atol=4e-6)


@pytest.mark.parametrize("part", [16, 1000])
def test_scores(part, monkeypatch):
    monkeypatch.setattr(fused_cross_entropy, "_SMALL_CHUNK", part)
    hidden, table, ids, weights = inputs()
    logits = jnp.einsum("bkd,vd->bkv", hidden, table)
    ids = jnp.where(jnp.arange(SLOTS)[None, :] % 2 == 0, logits.argmax(-1), ids)
    actual = fused_linear_cross_entropy(hidden, table, ids, weights, score=True)
    correct, _ = accuracy(logits, ids, weights)
    np.testing.assert_allclose(jnp.sum(actual.correct * weights), correct, rtol=1e-6)
    np.testing.assert_allclose(actual.losses.sum(), actual.total, rtol=1e-6)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, :, None], axis=2)[:, :, 0] * weights
    np.testing.assert_allclose(actual.losses, losses, rtol=2e-5, atol=2e-6)


def test_bfloat16_rounds_inputs_only():
    """Logits, softmax and the table's gradient stay float32; the hidden states' gradient comes in their dtype."""
    hidden, table, ids, weights = inputs(dtype=jnp.bfloat16)
    fused = gradients(lambda h, t: fused_linear_cross_entropy(h, t, ids, weights).total)
    loss, (d_hidden, d_table) = fused(hidden, table)
    assert (loss.dtype, d_hidden.dtype, d_table.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    expected, (wide_hidden, wide_table) = gradients(lambda h, t: by_logits(h, t, ids, weights, 0.0))(
        hidden.astype(jnp.float32), table.astype(jnp.bfloat16).astype(jnp.float32)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(d_hidden.astype(jnp.float32), wide_hidden, atol=0.03)
    np.testing.assert_allclose(d_table, wide_table, atol=0.03)


def test_a_row_without_targets_learns_nothing(monkeypatch):
    monkeypatch.setattr(fused_cross_entropy, "_SMALL_CHUNK", 16)
    hidden, table, ids, _ = inputs()
    loss, grads = gradients(lambda h, t: fused_linear_cross_entropy(h, t, ids, jnp.zeros((ROWS, SLOTS))).total)(
        hidden, table
    )
    assert loss == 0
    assert all(not jnp.any(g) for g in grads)


def test_smoothing_is_checked():
    with pytest.raises(ValueError, match=r"label_smoothing 1.0 must lie in \[0, 1\)"):
        fused_linear_cross_entropy(*inputs(), label_smoothing=1.0)


def on_meshes():
    """Prints, for several meshes, the largest differences from one device: of loss, gradients and hits."""
    from glm_jax.distributed import sharding
    from glm_jax.distributed.mesh import make_mesh

    fused_cross_entropy._SMALL_CHUNK = 3
    hidden, table, ids, weights = inputs()

    def fused(hidden, table):
        actual = fused_linear_cross_entropy(hidden, table, ids, weights, label_smoothing=0.1, score=True)
        return actual.total, actual

    compiled = jax.value_and_grad(fused, argnums=(0, 1), has_aux=True)
    expected, actual = compiled(hidden, table), {}
    for data, fsdp, tensor, embed in (
        (4, 1, 2, "fsdp"), (1, 4, 2, "fsdp"), (2, 2, 2, "fsdp"), (1, 1, 8, "fsdp"), (2, 2, 2, ("fsdp", "data")),
    ):  # fmt: skip
        mesh = make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor})
        with jax.set_mesh(mesh), sharding.logical_axis_rules(sharding.RULES | {"embed": embed}):
            result = jax.jit(compiled)(hidden, table)
        differences = jax.tree.map(lambda a, b: float(jnp.abs(a * 1.0 - b * 1.0).max()), result, expected)
        actual[f"{data}x{fsdp}x{tensor}, embed over {embed}"] = max(jax.tree.leaves(differences))
    print("FOUND", json.dumps(actual))


@pytest.mark.thorough
def test_every_device_has_its_rows_and_words():
    env = fake_devices(8)
    command = [
        sys.executable,
        "-c",
        "from tests.model import test_fused_cross_entropy; test_fused_cross_entropy.on_meshes()",
    ]
    path = str(ROOT)
    done = subprocess.run(command, env=env | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    actual = json.loads(done.stdout.split("FOUND ")[1])
    assert len(actual) == 5
    assert max(actual.values()) < 2e-5, actual
