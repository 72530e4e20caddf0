"""The reference switch: the same values and gradients, and derivatives that hand-written gradients do not have."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.model import fused_cross_entropy
from glm_jax.model.batch import Batch
from glm_jax.model.config import GLMConfig
from glm_jax.model.gradients import reference_gradients
from glm_jax.model.losses import cross_entropy, loss
from glm_jax.model.transformer import GLM, init_params

ROWS, LENGTH, TARGETS = 2, 10, 4


@pytest.fixture(scope="module")
def case():
    """A loss of parameters with dropout and remat, whose attention runs in chunks and whose head too."""
    config = GLMConfig(
        40, 2, 16, 2, 16, dtype="float32", init_std=0.2, remat="full", attention_backend="chunked",
        hidden_dropout=0.1, attention_dropout=0.1,
    )  # fmt: skip
    model, rng = GLM(config), np.random.default_rng(0)
    params = nn.unbox(init_params(model, jax.random.key(0)))
    integers = lambda high, *shape: jnp.asarray(rng.integers(0, high, shape), jnp.int32)  # noqa: E731
    batch = Batch(
        tokens=integers(40, ROWS, LENGTH), position_ids=integers(10, ROWS, LENGTH),
        block_position_ids=integers(4, ROWS, LENGTH), prefix_lengths=jnp.array([3, 6]),
        target_index=integers(LENGTH, ROWS, TARGETS), target_ids=integers(40, ROWS, TARGETS),
        target_weights=jnp.ones((ROWS, TARGETS)).at[1, 3].set(0.0), target_source=integers(1, ROWS, TARGETS),
        objective=integers(1, ROWS),
    )  # fmt: skip
    directions = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), params)
    key = jax.random.key(7, impl="rbg")
    return params, directions, jax.jit(lambda p: loss(model, p, batch, dropout_key=key, label_smoothing=0.1))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(fused_cross_entropy, "_SMALL_CHUNK", 3)


def vdot(x, y):
    return sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))


@pytest.mark.thorough
def test_forward_mode_and_hessians(case):
    params, direction, function = case
    value, gradient = jax.value_and_grad(function)(params)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(function, (params,), (direction,))
    with reference_gradients():  # of the function that jit has compiled with the other gradients
        again, slope = jax.jit(lambda p, v: jax.jvp(function, (p,), (v,)))(params, direction)
        reference, curvature = jax.jit(lambda p, v: jax.jvp(jax.grad(function), (p,), (v,)))(params, direction)
    np.testing.assert_allclose(again, value, rtol=1e-6)
    np.testing.assert_allclose(slope, vdot(gradient, direction), rtol=1e-4)
    largest = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), reference, gradient)
    step = 1e-3  # of a direction along which the loss changes little between its ends

    def moved(sign):
        return jax.grad(function)(jax.tree.map(lambda p, v: p + sign * step * v, params, direction))

    expected = jax.tree.map(lambda a, b: (a - b) / (2 * step), moved(1), moved(-1))
    difference = jax.tree.map(jnp.subtract, curvature, expected)
    assert vdot(difference, difference) < 1e-3 * vdot(expected, expected)
    np.testing.assert_allclose(
        jax.grad(function)(params)["final_layernorm"]["scale"], gradient["final_layernorm"]["scale"]
    )


@pytest.mark.thorough
def test_losses_of_logits_have_a_forward_mode():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 7))
    function = lambda logits: cross_entropy(logits, jnp.ones((2, 3), jnp.int32), jnp.ones((2, 3)), 0.1)[0]  # noqa: E731
    gradient = jax.grad(function)(logits)
    with reference_gradients():
        _, slope = jax.jvp(function, (logits,), (jnp.cos(logits),))
        np.testing.assert_allclose(jax.grad(function)(logits), gradient, atol=1e-6)
    np.testing.assert_allclose(slope, jnp.vdot(gradient, jnp.cos(logits)), rtol=1e-5)
