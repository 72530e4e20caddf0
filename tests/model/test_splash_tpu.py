"""Splash attention obeys the visibility rule, forward and backward; interpreted, because there is no TPU here."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.distributed import sharding
from glm_jax.distributed.mesh import make_mesh
from glm_jax.model.attention import attention
from glm_jax.model.dense_attention import dense_attention
from glm_jax.model.splash_tpu import splash_attention


def _inputs(batch, length, heads=2, width=64):
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, (batch, length, heads, width)) for key in keys]


@pytest.mark.parametrize("length", [128, 150, 256])
@pytest.mark.thorough
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


@pytest.mark.thorough
def test_a_mesh_changes_nothing():
    q, k, v, _ = _inputs(2, 130)
    prefixes = jnp.array([40, 130])
    alone = splash_attention(q, k, v, prefixes, interpret=True)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh), sharding.logical_axis_rules():
        split = jax.jit(lambda *a: splash_attention(*a, interpret=True))(q, k, v, prefixes)
    np.testing.assert_allclose(split, alone, atol=1e-6)


@pytest.fixture
def on_a_tpu(monkeypatch):
    """Of which there is none: the kernel must be interpreted or replaced."""
    monkeypatch.setattr("glm_jax.model.attention.traced_device", lambda: types.SimpleNamespace(device_kind="TPU v5"))


def test_what_it_cannot_express_is_refused(on_a_tpu):
    q, k, v, _ = _inputs(1, 128)
    attend = functools.partial(attention, q, k, v, jnp.array([40]), backend="splash")
    with pytest.raises(ValueError, match=r"set attention_dropout to 0, not 0.1, or choose attention_backend 'chunked'"):
        attend(dropout_rate=0.1, dropout_key=jax.random.key(0))
    with pytest.raises(ValueError, match="knows one text a row"):
        attend(segment_ids=jnp.ones((1, 128), jnp.int32))


def test_it_needs_a_tpu():
    q, k, v, _ = _inputs(1, 128)
    with pytest.raises(ValueError, match="'splash' needs a TPU, not 'cpu': choose 'auto'"):
        attention(q, k, v, jnp.array([40]), backend="splash")


@pytest.mark.thorough
def test_queries_after_the_longest_prefix_are_dense(on_a_tpu, monkeypatch):
    q, k, v, _ = _inputs(2, 150)
    prefixes = jnp.array([40, 128])
    whole = splash_attention(q, k, v, prefixes, interpret=True)
    lengths = []

    def interpreted(q, *rest):
        lengths.append(q.shape[1])
        return splash_attention(q, *rest, interpret=True)

    monkeypatch.setattr("glm_jax.model.splash_tpu.splash_attention", interpreted)
    got = attention(q, k, v, prefixes, backend="splash", longest_prefix=128)
    np.testing.assert_allclose(got, whole, atol=2e-5)
    assert lengths == [128]


def test_queries_at_targets_are_dense(on_a_tpu):
    q, k, v, _ = _inputs(2, 128)
    prefixes, index = jnp.array([40, 90]), jnp.array([[40, 41, 127], [90, 91, 92]])
    chosen = jnp.take_along_axis(q, index[:, :, None, None], axis=1)
    got = attention(chosen, k, v, prefixes, query_index=index, backend="splash")
    whole = splash_attention(q, k, v, prefixes, interpret=True)
    np.testing.assert_allclose(got, jnp.take_along_axis(whole, index[:, :, None, None], axis=1), atol=2e-5)
