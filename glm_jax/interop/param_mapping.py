"""The original's tensors and glm_jax's parameter tree: which is which, in both directions.

The original (THUDM/GLM, GLMModel) keeps a tensor per layer, linear weights as [out in], and queries, keys and values as
three blocks of rows of one weight. Here layers are stacked on axis 0, kernels are [in out], and heads have an axis of
their own. No value is changed by either direction.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from glm_jax.interop.errors import FormatError, listing
from glm_jax.interop.tensors import LazyTensor
from glm_jax.model.config import GLMConfig


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of the original.

    Attributes:
      path: names of the leaf in the parameter tree.
      layer: index on the leaf's axis 0; None for a leaf that is not stacked.
      shape: in the original.
      leaf_shape: in the parameter tree, without the layer axis.
      linear: a weight [out in], which the tree holds transposed.
    """

    key: str
    path: tuple[str, ...]
    layer: int | None
    shape: tuple[int, ...]
    leaf_shape: tuple[int, ...]
    linear: bool = False

    def to_leaf(self, array: np.ndarray) -> np.ndarray:
        """The original's array [*shape] as [*leaf_shape]."""
        return (array.T if self.linear else array).reshape(self.leaf_shape)

    def from_leaf(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_leaf`, contiguous."""
        shape = self.shape[::-1] if self.linear else self.shape
        array = np.asarray(array).reshape(shape)
        return np.ascontiguousarray(array.T if self.linear else array)


def entries(config: GLMConfig) -> list[Entry]:
    """Every tensor of a model, in the original's order."""
    width, wide, heads = (config.hidden_size,), (config.ffn_width,), (config.num_heads, config.head_width)
    result = [_table("word_embeddings", config.vocab_size, *width)]
    result.append(_table("transformer.position_embeddings", config.num_positions, *width))
    if config.block_positions:
        result.append(_table("transformer.block_position_embeddings", config.num_positions, *width))
    for i in range(config.num_layers):
        result += _norm("input_layernorm", *width, i)
        result += _linear("attention.query_key_value", width, (3, *heads), i)
        result += _linear("attention.dense", heads, width, i)
        result += _norm("post_attention_layernorm", *width, i)
        result += _linear("mlp.dense_h_to_4h", width, wide, i)
        result += _linear("mlp.dense_4h_to_h", wide, width, i)
    return result + _norm("final_layernorm", *width)


def _table(key, rows, width):
    return Entry(f"{key}.weight", (key.split(".")[-1], "embedding"), None, (rows, width), (rows, width))


def _names(name, layer):
    if layer is None:
        return f"transformer.{name}", (name,)
    return f"transformer.layers.{layer}.{name}", ("layers", *name.split("."))


def _norm(name, width, layer=None):
    key, path = _names(name, layer)
    return [
        Entry(f"{key}.{theirs}", (*path, ours), layer, (width,), (width,))
        for theirs, ours in (("weight", "scale"), ("bias", "bias"))
    ]


def _linear(name, inputs, outputs, layer):
    key, path = _names(name, layer)
    shape = (math.prod(outputs), math.prod(inputs))
    return [
        Entry(f"{key}.weight", (*path, "kernel"), layer, shape, (*inputs, *outputs), linear=True),
        Entry(f"{key}.bias", (*path, "bias"), layer, shape[:1], outputs),
    ]


def check(config: GLMConfig, tensors: Mapping[str, LazyTensor]) -> None:
    """Raises FormatError that names every tensor which `config` lacks, has too much of, or has in another shape."""
    expected = {entry.key: entry.shape for entry in entries(config)}
    missing = [key for key in expected if key not in tensors]
    unexpected = [f"{key} {tensors[key].shape} from {tensors[key].file}" for key in tensors if key not in expected]
    misshaped = [
        f"{key} is {tensors[key].shape} in {tensors[key].file}, expected {shape}"
        for key, shape in expected.items()
        if key in tensors and tensors[key].shape != shape
    ]
    problems = [
        f"{len(names)} {what}: {listing(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
        if names
    ]
    if problems:
        raise FormatError(
            f"the tensors are not those of a GLM with {config.num_layers} layers, width {config.hidden_size}, "
            f"{config.num_heads} heads, vocabulary {config.vocab_size}: {'. '.join(problems)}. Either the checkpoint "
            "is incomplete or of another model, or its config does not belong to it"
        )


def leaves(config: GLMConfig) -> dict[tuple[str, ...], list[Entry]]:
    """Path of each leaf -> its tensors, by layer. Those that need most memory come first, while there is little else:
    tables, each of which is read at once, then stacked leaves by size."""
    entries_of: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries(config):
        entries_of.setdefault(entry.path, []).append(entry)
    return dict(
        sorted(entries_of.items(), key=lambda item: (item[1][0].layer is not None, -math.prod(item[1][0].shape)))
    )


def state_dict(config: GLMConfig, params: Mapping[str, Any], dtype: np.dtype) -> dict[str, LazyTensor]:
    """The parameter tree as the original's tensors, converted one by one when they are read.

    Raises ValueError when `params` is not the tree of `config`.
    """
    result = {}
    for path, tensors in leaves(config).items():
        leaf: Any = params
        for name in path:
            leaf = leaf.get(name) if isinstance(leaf, Mapping) else None
        expected = tensors[0].leaf_shape if tensors[0].layer is None else (len(tensors), *tensors[0].leaf_shape)
        if getattr(leaf, "shape", None) != expected:
            raise ValueError(f"parameter {'/'.join(path)} is {getattr(leaf, 'shape', 'missing')}, expected {expected}")
        for entry in tensors:
            result[entry.key] = LazyTensor(entry.shape, dtype, lambda leaf=leaf, entry=entry: _read(leaf, entry, dtype))
    return {entry.key: result[entry.key] for entry in entries(config)}


def _read(leaf, entry, dtype):
    array = np.asarray(leaf if entry.layer is None else leaf[entry.layer])
    result = entry.from_leaf(array)
    if result.dtype != dtype:
        with np.errstate(over="ignore"):
            result = result.astype(dtype)
        if not np.isfinite(result).all():
            raise ValueError(f"{entry.key} has values that {dtype} cannot hold; export with another dtype")
    return result
