"""The functions that layers are made of, with gradients written by hand."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

DENSE = "dense"  # what remat policies call the result of a Linear: they cannot see a product with its own gradient


LAYERNORM_EPSILON = 1e-5  # fixed in the original


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x, scale, bias, dtype):
    return _layer_norm_forward(x, scale, bias, dtype)[0]


def _layer_norm_forward(x, scale, bias, dtype):
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    centred = wide - mean
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + LAYERNORM_EPSILON)
    return (centred * inverse * scale[None] + bias[None]).astype(dtype), (x, mean, inverse, scale)


def _layer_norm_backward(dtype, saved, d_out):
    x, mean, inverse, scale = saved
    normed = (x.astype(jnp.float32) - mean) * inverse
    d_out = d_out.astype(jnp.float32)
    d_scale, d_bias = jnp.sum(d_out * normed, axis=0), jnp.sum(d_out, axis=0)
    d_normed = d_out * scale[None]
    along = jnp.mean(d_normed * normed, axis=-1, keepdims=True)
    d_x = inverse * (d_normed - jnp.mean(d_normed, axis=-1, keepdims=True) - normed * along)
    return d_x.astype(x.dtype), d_scale, d_bias


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu(x: Float[Array, "*shape"], kind: str) -> Float[Array, "*shape"]:
    """x · P(normal < x) in the dtype of x, computed in float32 (Hendrycks and Gimpel 2016).

    `kind` "exact" takes the error function, "tanh" the approximation by it that the original trains with.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide, kind)[0]).astype(x.dtype)


def _gelu_forward(x, kind):
    return gelu(x, kind), x


def _gelu_backward(kind, x, d_out):
    wide = x.astype(jnp.float32)
    below, density = _normal_cdf(wide, kind)
    return (((below + wide * density) * d_out.astype(jnp.float32)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def _normal_cdf(x, kind):
    """P(normal < x), as GELU `kind` has it, and its derivative."""
    if kind == "exact":
        return 0.5 * jax.lax.erfc(-x * 0.5**0.5), jnp.exp(-0.5 * x * x) * (0.5 / math.pi) ** 0.5
    slope, cubic = (2.0 / math.pi) ** 0.5, 0.044715
    turn = jnp.tanh(slope * x * (1.0 + cubic * x * x))
    return 0.5 * (1.0 + turn), 0.5 * slope * (1.0 - turn * turn) * (1.0 + 3.0 * cubic * x * x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x: Float[Array, "R ..."], kernel: Float[Array, "..."], dtype: str) -> Float[Array, "R ..."]:
    """Contracts all axes of x but the first with the leading axes of `kernel`; the result comes in `dtype`.

    Its gradients are the usual ones, but the kernel's is formed the way round that runs best.
    """
    axes = tuple(range(1, x.ndim))
    return matmul(x, kernel, axes, tuple(a - 1 for a in axes), dtype)


def _linear_forward(x, kernel, dtype):
    return linear(x, kernel, dtype), (x, kernel)


def _linear_backward(dtype, saved, d_out):
    return jax.lax.platform_dependent(*saved, d_out.astype(saved[0].dtype), cpu=_gradients_on_cpu, default=_gradients)


linear.defvjp(_linear_forward, _linear_backward)


@jax.custom_vjp
def add_bias(x: Float[Array, "R ..."], bias: Float[Array, "..."]) -> Float[Array, "R ..."]:
    """x + bias in the dtype of x. The bias's gradient is summed in float32, whatever that dtype."""
    return x + bias.astype(x.dtype)[None]


def _add_bias_forward(x, bias):
    return add_bias(x, bias), bias


def _add_bias_backward(bias, d_out):
    # The bias and two products read this gradient: on CPU XLA computes it for each of them anew, 4 % of a step.
    d_out = cpu_barrier(d_out)
    return d_out, jnp.sum(d_out, axis=0, dtype=jnp.float32).astype(bias.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def cpu_barrier(x: Any) -> Any:
    """x, behind a barrier on CPU: XLA then computes it once and by itself, not inside each of its readers."""
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)


def _gradients(x, kernel, d_out):
    d_x = matmul(d_out, kernel, tuple(range(1, d_out.ndim)), tuple(range(x.ndim - 1, kernel.ndim)), x.dtype)
    return d_x, matmul(x, d_out, (0,), (0,), x.dtype)


def _gradients_on_cpu(x, kernel, d_out):
    # On two axes: XLA would copy kernels of more for their products. (Over several devices this gathers heads that a
    # mesh has split: fake devices only.)
    flat_x, flat_d_out = x.reshape(len(x), -1), d_out.reshape(len(d_out), -1)
    d_x = matmul(flat_d_out, kernel.reshape(flat_x.shape[1], -1), (1,), (1,), x.dtype)
    return d_x.reshape(x.shape), _matmul_tn_on_cpu(flat_x, flat_d_out, x.dtype).reshape(kernel.shape)


def matmul_tn(x: Float[Array, "*batch R M"], y: Float[Array, "*batch R N"], dtype: Any) -> Float[Array, "*batch M N"]:
    """xᵀ y in `dtype`, the way round that runs best."""
    batch = tuple(range(x.ndim - 2))
    rows = (x.ndim - 2,)
    plain = functools.partial(matmul, x_axes=rows, y_axes=rows, dtype=dtype, batch=batch)
    return jax.lax.platform_dependent(x, y, cpu=functools.partial(_matmul_tn_on_cpu, dtype=dtype), default=plain)


def _matmul_tn_on_cpu(x, y, dtype):
    # XLA's fast products contract the last axis of their left factor, where that lies in memory as the last: others
    # run at 0.8 of that in float32, and in bfloat16, which they convert, at 0.4. The narrow factor is the cheap one to
    # turn. One barrier keeps XLA from computing it again in turned order, the other keeps further turns out of the
    # product.
    if x.shape[-1] > y.shape[-1]:
        return jnp.swapaxes(_matmul_tn_on_cpu(y, x, dtype), -1, -2)
    last, batch = x.ndim - 1, tuple(range(x.ndim - 2))
    turned = with_layout_constraint(jnp.swapaxes(jax.lax.optimization_barrier(x), -1, -2), Layout(tuple(range(x.ndim))))
    return jax.lax.optimization_barrier(matmul(turned, y, (last,), (last - 1,), dtype, batch))


def matmul(
    x: Float[Array, "..."],
    y: Float[Array, "..."],
    x_axes: tuple[int, ...],
    y_axes: tuple[int, ...],
    dtype: Any,
    batch: tuple[int, ...] = (),
) -> Float[Array, "..."]:
    """Contracts `x_axes` of x with `y_axes` of y, for each place on their common axes `batch`; result in `dtype`."""
    axes = ((x_axes, y_axes), (batch, batch))
    return jax.lax.dot_general(x, y, axes, precision=precision(x), preferred_element_type=jnp.dtype(dtype))


def precision(x: Any) -> jax.lax.Precision | None:
    """The precision of products with x: accelerators round float32 inputs by default; who asks for float32 means it."""
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
