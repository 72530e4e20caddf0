"""Dense layers, embeddings and layer norm against their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.model import layers, ops

RNG = np.random.default_rng(0)


def normal(*shape, dtype="float32"):
    return jnp.asarray(RNG.normal(size=shape), dtype)


@pytest.mark.parametrize(
    ("x", "kernel", "equation"),
    [
        ((7, 4), (4, 3, 2, 5), "rd,dcnh->rcnh"),  # narrow to wide
        ((7, 6, 5), (6, 5, 4), "rnh,nhd->rd"),  # wide to narrow
        ((7, 12), (12, 2, 3), "rd,dnh->rnh"),  # wide to narrow, several output axes
    ],
)
def test_product_and_its_gradients(x, kernel, equation):
    x, kernel = normal(*x), normal(*kernel)
    actual, backward = jax.vjp(lambda x, kernel: ops.linear(x, kernel, "float32"), x, kernel)
    expected, expected_backward = jax.vjp(lambda x, kernel: jnp.einsum(equation, x, kernel), x, kernel)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    direction = normal(*actual.shape)
    for a, b in zip(backward(direction), expected_backward(direction), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    # Every platform's form, whichever of them runs here.
    for form in (ops._gradients, ops._gradients_on_cpu):
        for a, b in zip(form(x, kernel, direction), expected_backward(direction), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shapes", [((9, 4), (9, 7)), ((9, 7), (9, 4)), ((2, 3, 9, 9), (2, 3, 9, 4))])
def test_products_over_rows(shapes, dtype):
    # Transposed by the reader, as a table's gradient is: XLA must not fold this into the matmul, which it cannot run.
    x, y = (normal(*shape, dtype=dtype) for shape in shapes)
    actual = jax.jit(lambda x, y: jnp.swapaxes(ops.matmul_tn(x, y, "float32"), -1, -2))(x, y)
    expected = np.einsum("...rm,...rn->...nm", np.asarray(x, np.float64), np.asarray(y, np.float64))
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_product_sums_in_float32_when_asked():
    x, kernel = normal(3, 4096, dtype="bfloat16"), normal(4096, 2, dtype="bfloat16")
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    actual, gradients = jax.value_and_grad(lambda x, k: ops.linear(x, k, "float32").sum(), (0, 1))(x, kernel)
    np.testing.assert_allclose(ops.linear(x, kernel, "float32"), exact, atol=1e-3)
    np.testing.assert_allclose(actual, exact.sum(), atol=1e-2)
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.bfloat16]
    assert ops.linear(x, kernel, "bfloat16").dtype == jnp.bfloat16


def test_a_bias_adds_up_its_gradient_in_float32():
    rows = 4097  # which bfloat16 would round to 4096
    x, bias = jnp.zeros((rows, 3), "bfloat16"), normal(3)
    actual, backward = jax.vjp(ops.add_bias, x, bias)
    assert actual.dtype == jnp.bfloat16
    d_x, d_bias = backward(jnp.ones_like(x))
    assert (d_x.dtype, d_bias.dtype) == ("bfloat16", "float32")
    np.testing.assert_array_equal(d_bias, rows)


def test_linear_computes_a_part():
    linear = layers.Linear((4,), (3, 2), ("embed", "qkv", "heads"), 0.02, "float32")
    x, params = normal(5, 4), {"kernel": normal(4, 3, 2), "bias": normal(3, 2)}
    whole = linear.apply({"params": params}, x)
    np.testing.assert_allclose(whole, jnp.einsum("rd,dcn->rcn", x, params["kernel"]) + params["bias"][None], atol=1e-6)
    np.testing.assert_allclose(linear.apply({"params": params}, x, slice(1, 3)), whole[:, 1:], atol=1e-6)


def test_layer_norm_keeps_its_statistics_in_float32():
    # Entries near 100 stand 0.5 apart in bfloat16, so a mean rounded to it would shift every output.
    x = (100.0 + normal(5, 64)).astype(jnp.bfloat16)
    params = {"scale": normal(64), "bias": normal(64)}
    wide = np.asarray(x, np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    expected = expected * np.asarray(params["scale"]) + np.asarray(params["bias"])
    np.testing.assert_allclose(layers.LayerNorm("float32").apply({"params": params}, x), expected, atol=1e-3)
    assert layers.LayerNorm("bfloat16").apply({"params": params}, x).dtype == jnp.bfloat16


def kept_for_the_backward_pass(function, *arguments):
    """Shapes of the arrays that the backward pass reads, of more than one element."""
    _, backward = jax.vjp(function, *arguments)
    return sorted(a.shape for a in jax.tree.leaves(backward) if a.size > 1)


def test_layer_norm_has_the_gradients_of_its_definition():
    def defined(x, scale, bias):
        mean = x.mean(-1, keepdims=True)
        return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * scale[None] + bias[None]

    def actual(x, scale, bias):
        return layers.LayerNorm("float32").apply({"params": {"scale": scale, "bias": bias}}, x)

    arguments, direction = (3.0 * normal(7, 16) + 2.0, normal(16), normal(16)), normal(7, 16)
    for a, b in zip(jax.vjp(actual, *arguments)[1](direction), jax.vjp(defined, *arguments)[1](direction), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert kept_for_the_backward_pass(actual, *arguments) == [(7, 1), (7, 1), (7, 16), (16,)]


@pytest.mark.parametrize("kind", ["tanh", "exact"])
def test_gelu_and_its_gradient(kind):
    x = jnp.concatenate([normal(50), jnp.array([-40.0, -8.0, 0.0, 8.0, 40.0])])
    gelu = functools.partial(ops.gelu, kind=kind)
    expected, expected_backward = jax.vjp(functools.partial(jax.nn.gelu, approximate=kind == "tanh"), x)
    actual, backward = jax.vjp(gelu, x)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    np.testing.assert_allclose(backward(x), expected_backward(x), atol=1e-5)
    assert kept_for_the_backward_pass(gelu, x) == [x.shape]
    narrow = x.astype("bfloat16")  # computed in float32, rounded once
    once = jax.nn.gelu(narrow.astype("float32"), approximate=kind == "tanh").astype("bfloat16")
    np.testing.assert_allclose(np.float32(gelu(narrow)), np.float32(once), rtol=2**-8)
    assert jax.grad(lambda x: gelu(x).astype("float32").sum())(narrow).dtype == jnp.bfloat16


def test_an_id_outside_the_table_gives_nan():
    table = layers.Embedding(3, 2, "vocab", 0.02, "float32")
    params = {"embedding": normal(3, 2)}
    actual = table.apply({"params": params}, jnp.array([0, 2, 3]))
    np.testing.assert_array_equal(actual[:2], params["embedding"][jnp.array([0, 2])])
    assert np.isnan(actual[2]).all()
