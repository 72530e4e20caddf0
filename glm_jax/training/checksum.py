"""Checksums of a pytree's bits that do not depend on how its arrays are sharded."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32


def leaf_name(path: tuple) -> str:
    """ "params/layers/mlp" for a path of `jax.tree_util.tree_leaves_with_path`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def checksums(state: Any) -> dict[str, str]:
    """Checksums (hexadecimal) of all arrays and of those under `params`; integers, so that no sharding changes them."""
    leaves = {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    return {part: f"{int(value):08x}" for part, value in _sum_leaves(leaves).items()}


@jax.jit
def _sum_leaves(leaves: dict[str, Any]) -> dict[str, Any]:
    sums = {name: _checksum(leaf) * jnp.uint32(zlib.crc32(name.encode()) | 1) for name, leaf in leaves.items()}
    params = [value for name, value in sums.items() if name.startswith("params/")]
    totals = {"state": sum(sums.values(), start=jnp.uint32(0))}
    return totals | ({"params": sum(params, start=jnp.uint32(0))} if params else {})


def _checksum(array: Any) -> UInt32[Array, ""]:
    """Sum modulo 2**32 of a hash of every element's bits and index, so that one wrong bit or a swap changes it."""
    array = jnp.asarray(array)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * min(array.dtype.itemsize, 4)}")).astype(jnp.uint32)
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):  # no reshape: it would gather a sharded array
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    # The finalizer of MurmurHash3 (Appleby, public domain), a bijection of the bits at each index.
    mixed = bits + index * jnp.uint32(0x9E3779B9)
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)
