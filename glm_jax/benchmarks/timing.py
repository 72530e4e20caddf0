"""Timing: warm-up first, then the median of several calls; the bounds are measured in the same run."""

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
    """Seconds of `function(*arguments)` until its result is ready, after `warm_up` calls that are not timed.

    `choose` reduces the `repeats` times to one: the median, or the minimum to exclude other work on the machine.
    """
    for _ in range(warm_up):
        jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - began)
    return choose(times)


class TimeAgainstMatmuls(NamedTuple):
    """A function's time, and what plain matrix multiplications reach in the same time."""

    seconds: float
    flops_per_second: float  # of the matmuls
    flops: float  # that matmuls would do in `seconds`


def time_against_matmuls(
    function: Callable, dtype: str, repeats: int = 7, then: Callable[[], None] | None = None
) -> TimeAgainstMatmuls:
    """Medians of `repeats` runs of `function()`, each compared with plain matrix multiplications before and after it.

    On a shared machine the speed of matmuls drifts by half within minutes, so they are timed right before and after
    the function, for a tenth of its time. `then` is called after every run, outside the timed part, for anything that
    should be measured in the same minute.
    """
    matmuls, flops = _matmuls(dtype)
    count = max(5, round(0.1 * seconds(function, repeats=1) / seconds(matmuls, repeats=3)))
    host_memory.set_fragments_aside()  # as a run does after its first step

    def seconds_of_matmuls():
        return seconds(matmuls, repeats=count, warm_up=1, choose=statistics.fmean)

    times, matmul_times = [], [seconds_of_matmuls()]
    for _ in range(repeats):
        times.append(seconds(function, repeats=1, warm_up=0))
        if then:
            then()
        matmul_times.append(seconds_of_matmuls())
    means = [(first + second) / 2 for first, second in itertools.pairwise(matmul_times)]
    rates = [flops / s for s in means]
    reachable = [rate * time for rate, time in zip(rates, times, strict=True)]
    return TimeAgainstMatmuls(*map(statistics.median, (times, rates, reachable)))


def matmul_flops_per_second(dtype: str = "float32", size: int | None = None) -> float:
    """Floating-point operations per second of plain square matmuls: the bound of everything dense."""
    matmuls, flops = _matmuls(dtype, size)
    return flops / seconds(matmuls, repeats=5)


def _matmuls(dtype, size=None):
    """A function of plain square matmuls, and its floating-point operations.

    `size` None is large enough to reach the peak: 2048 on a CPU, 8192 elsewhere, where one program runs several matmuls
    to hide the cost of starting it. Float32 matmuls are exact: accelerators would round their inputs by default.
    """
    on_cpu = jax.default_backend() == "cpu"
    size, count = size or (2048 if on_cpu else 8192), 1 if on_cpu else 8
    a = jnp.full((size, size), 1 / size, dtype)

    @jax.jit
    def matmuls(a, b):
        for _ in range(count):
            b = jnp.matmul(a, b, precision=precision(a))
        return b

    return functools.partial(matmuls, a, a), count * 2 * size**3


def bytes_per_second(tree) -> float:
    """Bytes per second at which all arrays of `tree` are read once: the bound of whatever reads all parameters."""
    arrays = [a for a in jax.tree.leaves(tree) if a.ndim > 1]
    total = jax.jit(lambda arrays: sum(jnp.sum(a, dtype=jnp.float32) for a in arrays))
    return sum(a.nbytes for a in arrays) / seconds(total, arrays)
