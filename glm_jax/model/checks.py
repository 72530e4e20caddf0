"""Shapes and dtypes, checked where they are static: before anything is compiled, with one line that names the array."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

_KINDS = {jnp.integer: "integers", jnp.floating: "floats"}


def check_array(name: str, array: Any, axes: str, shape: tuple[int | None, ...], kind: Any) -> None:
    """Raises ValueError unless `array` has `shape` (None: any size) and a dtype of `kind`.

    Args:
      name: of the argument, for the message.
      array: a NumPy or JAX array, or a tracer of one.
      axes: letters of the dimensions, such as "B T".
      shape: the expected sizes.
      kind: jnp.integer or jnp.floating.
    """
    actual = np.shape(array)
    if len(actual) != len(shape) or any(size not in (None, a) for a, size in zip(actual, shape, strict=True)):
        sizes = ", ".join(
            letter if size is None else str(size) for letter, size in zip(axes.split(), shape, strict=True)
        )
        sizes += "," if len(shape) == 1 else ""
        raise ValueError(f"{name} has shape {actual}, but must be [{axes}] = ({sizes})")
    dtype = getattr(array, "dtype", None) or np.asarray(array).dtype
    if not jnp.issubdtype(dtype, kind):
        raise ValueError(f"{name} has dtype {dtype}, but must be {_KINDS[kind]}")


def check_label_smoothing(label_smoothing: float) -> None:
    """Raises ValueError for a value outside [0, 1)."""
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing {label_smoothing} must lie in [0, 1)")


def check_prefix(prefix: Sequence[Any], axes: str, shape: tuple[int | None, ...]) -> None:
    """Raises ValueError unless `prefix` is a pair of float arrays [axes] of `shape`, whose axis B may also be 1."""
    if len(prefix) != 2:
        raise ValueError(f"prefix has {len(prefix)} parts, but must be a pair, keys and values, each [{axes}]")
    row, expected = axes.split().index("B"), list(shape)
    for name, array in zip(("prefix keys", "prefix values"), prefix, strict=True):
        if np.ndim(array) == len(shape) and np.shape(array)[row] == 1:
            expected[row] = 1
        check_array(name, array, axes, tuple(expected), jnp.floating)
        expected = list(np.shape(array))  # the values are as many as the keys
        expected[row] = shape[row]


def check_model_inputs(
    config: Any,
    tokens: Any,
    position_ids: Any,
    block_position_ids: Any,
    prefix_lengths: Any,
    target_index: Any = None,
    segment_ids: Any = None,
    slots: Sequence[Any] | None = None,
    input_embeddings: Any = None,
    prefix: Sequence[Any] | None = None,
) -> None:
    """Raises ValueError for arguments of `GLM` whose shapes or dtypes do not belong together."""
    check_array("tokens", tokens, "B T", (None, None), jnp.integer)
    batch, length = np.shape(tokens)
    check_array("position_ids", position_ids, "B T", (batch, length), jnp.integer)
    check_array("block_position_ids", block_position_ids, "B T", (batch, length), jnp.integer)
    if slots and sum(slot.columns for slot in slots) != length:
        raise ValueError(f"the columns of {slots} must add up to those of a row, {length}")
    if slots and (len(slots) > 1 or np.ndim(prefix_lengths) == 2):
        check_array("prefix_lengths", prefix_lengths, "B P", (batch, len(slots)), jnp.integer)
    else:
        check_array("prefix_lengths", prefix_lengths, "B", (batch,), jnp.integer)
    if target_index is not None:
        count = sum(slot.targets for slot in slots) if slots else None
        check_array("target_index", target_index, "B K", (batch, count), jnp.integer)
    if segment_ids is not None:
        check_array("segment_ids", segment_ids, "B T", (batch, length), jnp.integer)
    if input_embeddings is not None:
        check_array("input_embeddings", input_embeddings, "B T D", (batch, length, config.hidden_size), jnp.floating)
    if prefix is not None:
        check_prefix(prefix, "Y B P N H", (config.num_layers, batch, None, config.num_heads, config.head_width))
