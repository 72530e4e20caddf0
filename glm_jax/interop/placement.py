"""Tensors from files onto devices, one leaf of the parameter tree at a time."""

import gc
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from glm_jax.interop.errors import FormatError
from glm_jax.interop.param_mapping import leaves
from glm_jax.interop.tensors import LazyTensor
from glm_jax.model.config import GLMConfig


def place(
    config: GLMConfig, tensors: Mapping[str, LazyTensor], shardings: Any, dtype: np.dtype
) -> Iterator[tuple[tuple[str, ...], jax.Array]]:
    """Reads tensor by tensor and yields (path, array) of every leaf, already on its sharding.

    Only this process's parts of one leaf are ever in host memory.

    Args:
      shardings: the parameter tree with a sharding at each leaf.
      dtype: of the parameters.
    """
    for path, found in leaves(config).items():
        sharding = shardings
        for name in path:
            sharding = sharding[name]
        yield path, _leaf(found, tensors, sharding, dtype)
        gc.collect(0)  # JAX lets go of the host buffers it has copied only at a garbage collection, of any generation


def _leaf(found, tensors, sharding, dtype):
    """A function of its own, so that nothing of one leaf is still referenced when the next is read."""
    stacked = found[0].layer is not None
    shape = (len(found), *found[0].leaf_shape) if stacked else found[0].leaf_shape
    parts: dict[tuple, np.ndarray] = {}
    for index in sharding.addressable_devices_indices_map(shape).values():
        span = _spans(index, shape)
        if span not in parts:
            parts[span] = np.empty([stop - start for start, stop in span], dtype)
    for i, entry in enumerate(found):
        if stacked and not any(span[0][0] <= i < span[0][1] for span in parts):
            continue
        array = entry.to_leaf(_read_weights(tensors[entry.key], entry.key, dtype))
        for span, part in parts.items():
            if not stacked:
                part[...] = array[tuple(slice(*bounds) for bounds in span)]
            elif span[0][0] <= i < span[0][1]:
                part[i - span[0][0]] = array[tuple(slice(*bounds) for bounds in span[1:])]
    del array
    return jax.block_until_ready(
        jax.make_array_from_callback(shape, sharding, lambda index: parts[_spans(index, shape)])
    )


def _spans(index, shape):
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _read_weights(tensor, key, dtype):
    array = tensor.read()
    with np.errstate(over="ignore"):
        converted = array.astype(dtype, copy=False)
    if not np.isfinite(converted).all():
        why = f"values that {dtype} cannot hold" if np.isfinite(array).all() else "NaN or infinity in it"
        raise FormatError(f"{key} from {tensor.file} has {why}: the file is damaged, or its training had diverged")
    return converted
