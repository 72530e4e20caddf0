"""Adapters that can become part of the kernels: LoRA's product and (IA)³'s scales, added and taken away again."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from glm_jax.methods.base import merge_trees, partition
from glm_jax.methods.lora import product
from glm_jax.model.adapters import ADAPTER_LEAVES


def has_adapter(params: Mapping[str, Any]) -> bool:
    """Whether there is more among the parameters than a model, a head and the original's soft prompt."""
    return "prefix" in params or bool(partition(params, lambda path: path[-1] in ADAPTER_LEAVES)[0])


def without_adapter(params: Mapping[str, Any]) -> dict[str, Any]:
    """`params` without what LoRA, (IA)³ and prefixes have added."""
    return partition(params, lambda path: path[0] != "prefix" and path[-1] not in ADAPTER_LEAVES)[0]


def merge(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`params` with LoRA's products and (IA)³'s scales in the kernels, and what `unmerge` needs.

        merged, adapter = merge(params)
        params = unmerge(merged, adapter)

    Raises ValueError where there is nothing to merge, or a prefix, which cannot be.
    """
    if "prefix" in params:
        raise ValueError("a trained prefix cannot be merged into the kernels: keep it as an adapter")
    adapter, plain = partition(params, lambda path: path[-1] in ADAPTER_LEAVES)
    if not adapter:
        raise ValueError("there is no adapter to merge: add or open one first")
    return _apply(plain, adapter, forward=True), adapter


def unmerge(params: Mapping[str, Any], adapter: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `merge`, up to rounding."""
    return merge_trees(adapter, _apply(params, adapter, forward=False))


def _apply(params, adapter, forward):
    if "kernel" not in params:
        return {
            name: _apply(branch, adapter[name], forward) if name in adapter else branch
            for name, branch in params.items()
        }
    kernel, bias = (params[name].astype(jnp.float32) for name in ("kernel", "bias"))
    if "lora_a" in adapter:
        kernel = kernel + (1 if forward else -1) * product(adapter).reshape(kernel.shape)
    if "input_scale" in adapter:
        scale = adapter["input_scale"] if forward else 1 / adapter["input_scale"]
        kernel = kernel * scale.reshape(*scale.shape, *(1,) * (kernel.ndim - scale.ndim))
    if "output_scale" in adapter:
        scale = adapter["output_scale"] if forward else 1 / adapter["output_scale"]
        if bias.ndim > 2:  # of query, key and value, the last
            ones = jnp.ones((len(scale), bias.shape[1] - scale.shape[1], *scale.shape[2:]))
            scale = jnp.concatenate([ones, scale], axis=1)
        bias = bias * scale
        kernel = kernel * scale.reshape(len(scale), *(1,) * (kernel.ndim - scale.ndim), *scale.shape[1:])
    return dict(params) | {
        "kernel": kernel.astype(params["kernel"].dtype), "bias": bias.astype(params["bias"].dtype)
    }  # fmt: skip
