"""How everything here is timed: compiled and warmed up first, the median of several runs, bounds in the same run."""

import functools
import itertools
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from glm_jax.model.ops import precision
from glm_jax.training import host_memory


def seconds(
    function: Callable, *arguments, repeats: int = 7, warm_up: int = 2, choose: Callable = statistics.median
) -> float:
    """Seconds of `function(*arguments)` until its result is ready, after `warm_up` calls that do not count.

    Of several, `choose` takes one: the median, or the least where other work on the machine should not show.
    """
    for _ in range(warm_up):
        jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - began)
    return choose(times)


class BesideProducts(NamedTuple):
    """A function's time, and what plain matrix products do in such a time."""

    seconds: float
    flops_per_second: float  # of products
    flops: float  # that products do while the function runs


def beside_products(
    function: Callable, dtype: str, repeats: int = 7, then: Callable[[], None] | None = None
) -> BesideProducts:
    """Medians of `repeats` runs of `function()`, each held against plain matrix products before and after it.

    On a machine that is shared its products drift by half within minutes: what is compared follows each other at once,
    and products run as long as a tenth of the function, since their mean over some time is what its parts can reach.
    `then` is called after every run, outside of its time: for what should be measured in the same minute.
    """
    products, flops = _products(dtype)
    count = max(5, round(0.1 * seconds(function, repeats=1) / seconds(products, repeats=3)))
    host_memory.set_fragments_aside()  # as a run does after its first step

    def seconds_of_products():
        return seconds(products, repeats=count, warm_up=1, choose=statistics.fmean)

    times, between = [], [seconds_of_products()]
    for _ in range(repeats):
        times.append(seconds(function, repeats=1, warm_up=0))
        if then:
            then()
        between.append(seconds_of_products())
    beside = [(before + after) / 2 for before, after in itertools.pairwise(between)]
    rates = [flops / s for s in beside]
    pairs = [rate * time for rate, time in zip(rates, times, strict=True)]
    return BesideProducts(*map(statistics.median, (times, rates, pairs)))


def matmul_flops_per_second(dtype: str = "float32", size: int | None = None) -> float:
    """Floating-point operations a second of plain square matrix products: the bound of everything dense."""
    products, flops = _products(dtype, size)
    return flops / seconds(products, repeats=5)


def _products(dtype, size=None):
    """A function of plain square products, and its floating-point operations.

    `size` None is large enough to be at the peak: 2048 on a CPU, 8192 elsewhere, where several products follow each
    other so that starting them costs nothing. Float32 products are real ones: accelerators would round their inputs.
    """
    on_cpu = jax.default_backend() == "cpu"
    size, count = size or (2048 if on_cpu else 8192), 1 if on_cpu else 8
    a = jnp.full((size, size), 1 / size, dtype)

    @jax.jit
    def products(a, b):
        for _ in range(count):
            b = jnp.matmul(a, b, precision=precision(a))
        return b

    return functools.partial(products, a, a), count * 2 * size**3


def bytes_per_second(tree) -> float:
    """Bytes a second at which all arrays of `tree` are read once: the bound of everything that reads parameters."""
    arrays = [a for a in jax.tree.leaves(tree) if a.ndim > 1]
    total = jax.jit(lambda arrays: sum(jnp.sum(a, dtype=jnp.float32) for a in arrays))
    return sum(a.nbytes for a in arrays) / seconds(total, arrays)
