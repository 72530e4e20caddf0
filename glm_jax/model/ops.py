"""The functions that layers are made of, with hand-written gradients (see glm_jax/model/gradients.py)."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from glm_jax.model.gradients import custom_vjp

DENSE = "dense"  # checkpoint name of a Linear's result: remat policies cannot see the matmul inside a custom_vjp

LAYERNORM_EPSILON = 1e-5  # fixed in the original


@functools.partial(custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "R D"], scale: Float[Array, "D"], bias: Float[Array, "D"], dtype: str
) -> Float[Array, "R D"]:
    """Layer normalisation over the last axis, statistics in float32, result in `dtype`."""
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
    projection = jnp.mean(d_normed * normed, axis=-1, keepdims=True)
    d_x = inverse * (d_normed - jnp.mean(d_normed, axis=-1, keepdims=True) - normed * projection)
    return d_x.astype(x.dtype), d_scale, d_bias


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@functools.partial(custom_vjp, nondiff_argnums=(1,))
def gelu(x: Float[Array, "*shape"], kind: str) -> Float[Array, "*shape"]:
    """GELU, x · Φ(x), in the dtype of x, computed in float32 (Hendrycks and Gimpel 2016).

    `kind` "exact" uses the error function, "tanh" the approximation that the original trains with.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide, kind)[0]).astype(x.dtype)


def _gelu_forward(x, kind):
    return gelu(x, kind), x


def _gelu_backward(kind, x, d_out):
    wide = x.astype(jnp.float32)
    cdf, density = _normal_cdf(wide, kind)
    return (((cdf + wide * density) * d_out.astype(jnp.float32)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def _normal_cdf(x, kind):
    """Φ(x) as GELU `kind` defines it, and its derivative."""
    if kind == "exact":
        return 0.5 * jax.lax.erfc(-x * 0.5**0.5), jnp.exp(-0.5 * x * x) * (0.5 / math.pi) ** 0.5
    slope, cubic = (2.0 / math.pi) ** 0.5, 0.044715
    tanh = jnp.tanh(slope * x * (1.0 + cubic * x * x))
    return 0.5 * (1.0 + tanh), 0.5 * slope * (1.0 - tanh * tanh) * (1.0 + 3.0 * cubic * x * x)


@functools.partial(custom_vjp, nondiff_argnums=(2,))
def linear(x: Float[Array, "R ..."], kernel: Float[Array, "..."], dtype: str) -> Float[Array, "R ..."]:
    """Contracts all axes of x but the first with the leading axes of `kernel`; the result has `dtype`.

    The kernel's gradient is computed in the layout that runs fastest on the platform.
    """
    axes = tuple(range(1, x.ndim))
    return matmul(x, kernel, axes, tuple(a - 1 for a in axes), dtype)


def _linear_forward(x, kernel, dtype):
    return linear(x, kernel, dtype), (x, kernel)


def _linear_backward(dtype, saved, d_out):
    return jax.lax.platform_dependent(*saved, d_out.astype(saved[0].dtype), cpu=_gradients_on_cpu, default=_gradients)


linear.defvjp(_linear_forward, _linear_backward)


@custom_vjp
def add_bias(x: Float[Array, "R ..."], bias: Float[Array, "..."]) -> Float[Array, "R ..."]:
    """x + bias in the dtype of x. The bias's gradient is summed in float32, whatever that dtype."""
    return x + bias.astype(x.dtype)[None]


def _add_bias_forward(x, bias):
    return add_bias(x, bias), bias


def _add_bias_backward(bias, d_out):
    # The bias and two matmuls read this gradient: on CPU XLA would compute it once for each of them, 4 % of a step.
    d_out = cpu_barrier(d_out)
    return d_out, jnp.sum(d_out, axis=0, dtype=jnp.float32).astype(bias.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def cpu_barrier(x: Any) -> Any:
    """x, on CPU after an optimization barrier: XLA then computes it once, not inside each of its readers."""
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)


def _gradients(x, kernel, d_out):
    d_x = matmul(d_out, kernel, tuple(range(1, d_out.ndim)), tuple(range(x.ndim - 1, kernel.ndim)), x.dtype)
    return d_x, matmul(x, d_out, (0,), (0,), x.dtype)


def _gradients_on_cpu(x, kernel, d_out):
    # On two axes: XLA copies kernels of more axes before it multiplies. (Over several devices this gathers heads that
    # the mesh has split; only tests with fake devices do that.)
    flat_x, flat_d_out = x.reshape(len(x), -1), d_out.reshape(len(d_out), -1)
    d_x = matmul(flat_d_out, kernel.reshape(flat_x.shape[1], -1), (1,), (1,), x.dtype)
    return d_x.reshape(x.shape), _matmul_tn_on_cpu(flat_x, flat_d_out, x.dtype).reshape(kernel.shape)


def matmul_tn(x: Float[Array, "*batch R M"], y: Float[Array, "*batch R N"], dtype: Any) -> Float[Array, "*batch M N"]:
    """xᵀ y in `dtype`, in the layout that runs fastest on the platform."""
    batch = tuple(range(x.ndim - 2))
    rows = (x.ndim - 2,)
    plain = functools.partial(matmul, x_axes=rows, y_axes=rows, dtype=dtype, batch=batch)
    return jax.lax.platform_dependent(x, y, cpu=functools.partial(_matmul_tn_on_cpu, dtype=dtype), default=plain)


def _matmul_tn_on_cpu(x, y, dtype):
    # XLA's fastest matmul contracts the last axis of its left operand, if that axis is contiguous. Other layouts run at
    # 0.8 of its speed in float32 and at 0.4 in bfloat16. The narrower operand is the cheaper one to transpose. The
    # first barrier keeps XLA from computing the operand again in transposed order, the second keeps later
    # transpositions out of the matmul.
    if x.shape[-1] > y.shape[-1]:
        return jnp.swapaxes(_matmul_tn_on_cpu(y, x, dtype), -1, -2)
    last, batch = x.ndim - 1, tuple(range(x.ndim - 2))
    transposed = with_layout_constraint(
        jnp.swapaxes(jax.lax.optimization_barrier(x), -1, -2), Layout(tuple(range(x.ndim)))
    )
    return jax.lax.optimization_barrier(matmul(transposed, y, (last,), (last - 1,), dtype, batch))


def matmul(
    x: Float[Array, "..."],
    y: Float[Array, "..."],
    x_axes: tuple[int, ...],
    y_axes: tuple[int, ...],
    dtype: Any,
    batch: tuple[int, ...] = (),
) -> Float[Array, "..."]:
    """Contracts `x_axes` of x with `y_axes` of y, batched over their common axes `batch`; the result has `dtype`."""
    axes = ((x_axes, y_axes), (batch, batch))
    return jax.lax.dot_general(x, y, axes, precision=precision(x), preferred_element_type=jnp.dtype(dtype))


def precision(x: Any) -> jax.lax.Precision | None:
    """The matmul precision for x. Float32 inputs are never rounded, which accelerators do by default."""
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
