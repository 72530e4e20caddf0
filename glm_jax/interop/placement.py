"""Tensors from files onto devices, one leaf of the parameter tree at a time."""

import gc
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from glm_jax.distributed import sharding
from glm_jax.distributed.mesh import inference_mesh
from glm_jax.interop.errors import FormatError
from glm_jax.interop.param_mapping import leaves
from glm_jax.interop.tensors import DTYPES, LazyTensor
from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import init_params


def abstract_params(config: GLMConfig, mesh: Mesh | None, rules: sharding.Rules, param_dtype: str) -> Any:
    """The parameter tree as `jax.ShapeDtypeStruct`s with shardings on `mesh`, by default `inference_mesh`."""
    mesh = inference_mesh(config.num_heads, config.vocab_size) if mesh is None else mesh
    boxed = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    abstract = sharding.with_shardings(boxed, sharding.state_shardings(boxed, mesh, rules))
    dtype = DTYPES[param_dtype]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding), abstract)


def place_params(
    config: GLMConfig, tensors: Mapping[str, LazyTensor], param_dtype: str, mesh: Mesh | None, rules: sharding.Rules
) -> dict[str, Any]:
    """The parameter tree read from the original's tensors, on `mesh`, by default `inference_mesh`.

    Raises FormatError for damaged files, NaN or infinity.
    """
    abstract = abstract_params(config, mesh, rules, param_dtype)
    params: dict = {}
    for path, leaf in place(config, tensors, jax.tree.map(lambda leaf: leaf.sharding, abstract), DTYPES[param_dtype]):
        branch = params
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        branch[path[-1]] = leaf
    return params


def replicate(tree: Any, params: Any) -> Any:
    """The NumPy arrays of `tree`, whole on every device of the mesh on which `params` are, if they are on one."""
    placed = getattr(jax.tree.leaves(params)[0], "sharding", None)
    return jax.device_put(tree, sharding.replicated(placed.mesh) if isinstance(placed, NamedSharding) else None)


def place(
    config: GLMConfig, tensors: Mapping[str, LazyTensor], shardings: Any, dtype: np.dtype
) -> Iterator[tuple[tuple[str, ...], jax.Array]]:
    """Reads tensor by tensor and yields (path, array) of every leaf, already on its sharding.

    Only this process's parts of one leaf are ever in host memory.

    Args:
      shardings: the parameter tree with a sharding at each leaf.
      dtype: of the parameters.
    """
    for path, entries in leaves(config).items():
        target = shardings
        for name in path:
            target = target[name]
        yield path, _leaf(entries, tensors, target, dtype)
        gc.collect(0)  # JAX lets go of the host buffers it has copied only at a garbage collection, of any generation


def _leaf(entries, tensors, target, dtype):
    """A function of its own, so that nothing of one leaf is still referenced when the next is read."""
    stacked = entries[0].layer is not None
    shape = (len(entries), *entries[0].leaf_shape) if stacked else entries[0].leaf_shape
    parts: dict[tuple, np.ndarray] = {}
    for index in target.addressable_devices_indices_map(shape).values():
        span = _spans(index, shape)
        if span not in parts:
            parts[span] = np.empty([stop - start for start, stop in span], dtype)
    for i, entry in enumerate(entries):
        if stacked and not any(span[0][0] <= i < span[0][1] for span in parts):
            continue
        array = entry.to_leaf(_read_weights(tensors[entry.key], entry.key, dtype))
        for span, part in parts.items():
            if not stacked:
                part[...] = array[tuple(slice(*bounds) for bounds in span)]
            elif span[0][0] <= i < span[0][1]:
                part[i - span[0][0]] = array[tuple(slice(*bounds) for bounds in span[1:])]
    del array
    return jax.block_until_ready(jax.make_array_from_callback(shape, target, lambda index: parts[_spans(index, shape)]))


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
