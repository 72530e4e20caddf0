"""How everything here is timed: compiled and warmed up first, the median of several runs, bounds in the same run."""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp


def seconds(function: Callable, *arguments, repeats: int = 7) -> float:
    """Median seconds of `function(*arguments)` until its result is ready, after two calls that do not count."""
    for _ in range(2):
        jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def matmul_flops_per_second(dtype: str = "float32", size: int = 2048) -> float:
    """Floating-point operations a second of one plain square matrix product: the bound of everything dense."""
    a = jnp.ones((size, size), dtype)
    return 2 * size**3 / seconds(jax.jit(jnp.matmul), a, a, repeats=5)


def bytes_per_second(tree) -> float:
    """Bytes a second at which all arrays of `tree` are read once: the bound of everything that reads parameters."""
    arrays = [a for a in jax.tree.leaves(tree) if a.ndim > 1]
    total = jax.jit(lambda arrays: sum(jnp.sum(a, dtype=jnp.float32) for a in arrays))
    return sum(a.nbytes for a in arrays) / seconds(total, arrays)
