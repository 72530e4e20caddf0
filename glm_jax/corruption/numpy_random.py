"""JAX's default random numbers (Threefry 2x32, partitionable) and the functions of `random_bits.py`, in NumPy."""

import jax
import numpy as np
from jaxtyping import Bool, Float32, UInt32

_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
# The polynomial of Cephes' single-precision logarithm, which XLA's CPU backend uses; highest power first.
_LOG_POLYNOMIAL = (
    (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1),
    (-1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1),
    (2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)


def key_words(key: int | np.ndarray | jax.Array) -> UInt32[np.ndarray, "2"]:
    """The two words of `jax.random.key(key)` for an int, or of a JAX key."""
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        if not 0 <= key < 2**32:
            raise ValueError(f"key={key} must lie in 0 … 4294967295 as a seed of jax.random.key")
        return np.array([0, key], np.uint32)
    if isinstance(key, jax.Array) and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    if getattr(key, "dtype", None) != np.uint32 or np.shape(key) != (2,):
        raise ValueError("key must be a seed, a Threefry key of JAX or its two words (jax.random.key_data)")
    return np.asarray(key)


def fold_in(key: UInt32[np.ndarray, "2"], data: UInt32[np.ndarray, "B"]) -> UInt32[np.ndarray, "2 B"]:
    """`jax.random.fold_in(key, data)` for each of `data`."""
    return np.stack(_threefry(key[0], key[1], np.zeros_like(data), data))


def random_bits(keys: UInt32[np.ndarray, "2 B"], count: int) -> UInt32[np.ndarray, "B N"]:
    """`jax.random.bits(key, (count,), uint32)` for each key."""
    high, low = np.zeros((1, count), np.uint32), np.arange(count, dtype=np.uint32)[None]
    first, second = _threefry(keys[0][:, None], keys[1][:, None], high, low)
    return first ^ second


def _threefry(key0, key1, x0, x1):
    """Threefry 2x32 with 20 rounds (Salmon et al., 2011)."""
    keys = key0, key1, key0 ^ key1 ^ np.uint32(0x1BD11BDA)
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = (x1 << np.uint32(rotation)) | (x1 >> np.uint32(32 - rotation))
            x1 = x1 ^ x0
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x0, x1


def uniform_int(word: np.uint32, bound: int | np.integer) -> int:
    """`random_bits.uniform_int` of one word."""
    return int(word) * int(bound) >> 32


def bernoulli(
    bits: np.uint32 | UInt32[np.ndarray, "*shape"], probability: float
) -> np.bool_ | Bool[np.ndarray, "*shape"]:
    """`random_bits.bernoulli`."""
    if probability >= 1:
        return np.ones_like(bits, bool)
    return bits < np.uint32(probability * 2**32)


def exponential(bits: UInt32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """`random_bits.exponential`, bit for bit as on a CPU that has fused multiply-add."""
    return -_log(((bits >> 8).astype(np.float32) + np.float32(0.5)) * np.float32(2**-24))


def _log(x):
    """XLA's natural logarithm on CPU, of normal float32 numbers."""
    mantissa, exponent = np.frexp(x)  # mantissa in [0.5, 1)
    is_small = mantissa < np.float32(np.sqrt(0.5))
    m = np.where(is_small, mantissa + mantissa, mantissa) - np.float32(1)
    exponent = (exponent - is_small).astype(np.float32)
    squared = m * m
    cubed = squared * m
    parts = [_fma(_fma(np.float32(a), m, np.float32(b)), m, np.float32(c)) for a, b, c in _LOG_POLYNOMIAL]
    series = _fma(_fma(parts[0], cubed, parts[1]), cubed, parts[2])
    series = _fma(series, cubed, _LN2_LOW * exponent)
    return _fma(_LN2_HIGH, exponent, _fma(squared, np.float32(-0.5), m) + series)


def _fma(a, b, c):
    """a · b + c of float32 numbers, rounded once (but for rare double roundings by float64)."""
    return (np.multiply(a, b, dtype=np.float64) + c).astype(np.float32)
