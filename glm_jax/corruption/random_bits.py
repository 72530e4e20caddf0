"""Random numbers from 32-bit random words. `numpy_random.py` has the same functions in NumPy."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32


def uniform_int(bits: UInt32[Array, "..."], bound: int | Int[Array, "..."]) -> Int[Array, "..."]:
    """Uniform integer in [0, bound) from 32 random bits, 0 < bound < 2^16, biased by at most bound / 2^32."""
    bound = jnp.asarray(bound).astype(jnp.uint32)
    high, low = bits >> 16, bits & 0xFFFF
    return ((high * bound + ((low * bound) >> 16)) >> 16).astype(jnp.int32)


def bernoulli(bits: UInt32[Array, "..."], probability: float) -> Bool[Array, "..."]:
    """True with `probability`; exact at 0 and 1."""
    if probability >= 1:
        return jnp.ones_like(bits, bool)
    return bits < np.uint32(probability * 2**32)


def exponential(bits: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """Exponentially distributed float32 with mean 1. Its last bit depends on the logarithm of the device."""
    return -jnp.log(((bits >> 8).astype(jnp.float32) + 0.5) * np.float32(2**-24))
