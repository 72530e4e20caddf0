"""Compares the attention backends of a device: time, memory, and the difference of their results."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from glm_jax.benchmarks.timing import matmul_flops_per_second, seconds
from glm_jax.model.attention import BACKENDS, attention, check_backend_name
from glm_jax.training.flops import visible_pairs

_WIDTH = 64  # columns of a head in every model of the paper
_REFERENCE = "dense"


def run(
    rows: int = 16,
    length: int = 568,
    prefix: int = 435,
    heads: int = 16,
    dtype: str = "bfloat16",
    dropout: float = 0.0,
    backends: tuple[str, ...] = (),
    chained: int | None = None,
) -> dict:
    """Times forward, and forward with the gradients of q, k and v, of `backends` (default: all) on random inputs.

    A backend that refuses this device or these sizes is listed with its reason. One program runs `chained` attentions,
    each with the result of the previous one as its queries: 8 to hide the cost of starting a program, 1 on a CPU.

    Raises ValueError for a name that is no backend, and for a Part A longer than its row.
    """
    for name in backends:
        check_backend_name(name)
    if not 0 <= prefix <= length:
        raise ValueError(f"--prefix={prefix} of rows of {length} columns: give at most --length")
    count = chained or (1 if jax.default_backend() == "cpu" else 8)
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, direction = (jax.random.normal(key, (rows, length, heads, _WIDTH), dtype) for key in keys)
    prefixes = jnp.full(rows, prefix, jnp.int32)

    def chain(backend, q, k, v):
        for i in range(count):
            key = jax.random.key(i) if dropout else None
            q = attention(q, k, v, prefixes, backend=backend, dropout_rate=dropout, dropout_key=key)
        return q

    def with_gradients(backend, q, k, v):
        out, pull = jax.vjp(functools.partial(chain, backend), q, k, v)
        return out, *pull(direction)

    pairs = sum(visible_pairs(np.array([prefix], np.float64), np.array([length - prefix], np.float64)))[0]
    flops = 4 * rows * heads * _WIDTH * pairs
    bound = matmul_flops_per_second(dtype)
    table, results = {}, {}
    for name in backends or sorted(set(BACKENDS) - {"auto"}):
        try:
            forward = jax.jit(functools.partial(chain, name)).lower(q, k, v).compile()
            both = jax.jit(functools.partial(with_gradients, name)).lower(q, k, v).compile()
            forward_seconds, both_seconds = (seconds(program, q, k, v) / count for program in (forward, both))
        except Exception as error:  # from the backend, Pallas or XLA; the other backends are still measured
            table[name] = {"refused": str(error).strip().splitlines()[0]}
            continue
        results[name] = jax.device_get(both(q, k, v))
        table[name] = {
            "forward_seconds": forward_seconds,
            "forward_and_backward_seconds": both_seconds,
            "useful_gflops_per_second": 3 * flops / both_seconds / 1e9,
            "fraction_of_bound": 3 * flops / both_seconds / bound,
            "temporary_bytes": both.memory_analysis().temp_size_in_bytes,
        }
    if dropout == 0 and _REFERENCE in results:  # otherwise the masks differ
        for name, arrays in results.items():
            table[name]["difference"] = _difference(arrays, results[_REFERENCE])
    fastest = max(results, key=lambda name: table[name]["useful_gflops_per_second"], default=None)
    return {
        "value": table[fastest]["useful_gflops_per_second"] if fastest else 0.0,
        "unit": f"useful GFLOP/s, forward and backward, of {fastest}",
        "bound": bound / 1e9,
        "bound_unit": "GFLOP/s of plain matrix multiplications in the same run",
        "fraction_of_bound": table[fastest]["fraction_of_bound"] if fastest else 0.0,
        "backends": table,
        "rows": rows, "length": length, "prefix": prefix, "heads": heads, "dtype": dtype, "dropout": dropout,
        "counting": "visible query-key pairs only, two matmuls forward and four backward; difference: the largest from "
        f"{_REFERENCE}, of the result and the three gradients, relative to the largest value there",
    }  # fmt: skip


def _difference(arrays, reference):
    both = ((np.asarray(a, np.float32), np.asarray(b, np.float32)) for a, b in zip(arrays, reference, strict=True))
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in both)
