"""Splash attention obeys the visibility rule, forward and backward; interpreted, because there is no TPU here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax import sharding
from glm_jax.attention import dense_attention
from glm_jax.splash import splash_attention


def _inputs(batch, length, heads=2, width=64):
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, (batch, length, heads, width)) for key in keys]


@pytest.mark.parametrize("length", [128, 150, 256])
def test_equals_dense_forward_and_backward(length):
    q, k, v, weights = _inputs(4, length)
    prefixes = jnp.array([0, 1, length // 2, length])

    def loss(attend):
        return lambda q, k, v: (attend(q, k, v) * weights).sum()

    def dense(q, k, v):
        return dense_attention(q, k, v, prefixes, jnp.arange(length)[None, :], 0.0, None)

    def splash(q, k, v):
        return splash_attention(q, k, v, prefixes, interpret=True)

    np.testing.assert_allclose(splash(q, k, v), dense(q, k, v), atol=2e-5)
    got, expected = (jax.grad(loss(f), argnums=(0, 1, 2))(q, k, v) for f in (splash, dense))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)


def test_a_mesh_changes_nothing():
    q, k, v, _ = _inputs(2, 130)
    prefixes = jnp.array([40, 130])
    alone = splash_attention(q, k, v, prefixes, interpret=True)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh), sharding.logical_axis_rules():
        split = jax.jit(lambda *a: splash_attention(*a, interpret=True))(q, k, v, prefixes)
    np.testing.assert_allclose(split, alone, atol=1e-6)
