"""Soft prompts and classification heads in checkpoints: their tensors and glm_jax's trees, in both directions."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from glm_jax.interop.errors import FormatError, listing
from glm_jax.interop.tensors import LazyTensor, of_array

EXTRAS = ("prompt", "classifier")  # names of these trees among the parameters
PROMPT = "prompt_spell."
# Path in the tree -> the original's name. Both code bases of GLM have such a head, under names of their own.
_HEAD_NAMES = {
    "megatron": {("pool",): "pool_layer", ("output",): "multichoice_head"},
    "hub": {("pool",): "dense", ("output",): "out_proj"},
}
_PROMPT_LINEARS = {("mlp", "first"): "mlp_head.0", ("mlp", "second"): "mlp_head.2"}


def _linear(path, name):
    return {(*path, "kernel"): f"{name}.weight", (*path, "bias"): f"{name}.bias"}


def _head(flavor):
    return {key: name for path, owner in _HEAD_NAMES[flavor].items() for key, name in _linear(path, owner).items()}


def _prompt(function):
    names = {("embedding",): f"{PROMPT}spell_embeddings.weight"}
    if function != "none":
        for path, name in _PROMPT_LINEARS.items():
            names |= _linear(path, PROMPT + name)
    if function == "lstm":
        for layer in (0, 1):
            for direction, suffix in (("forward", ""), ("backward", "_reverse")):
                for part, short in (("input", "ih"), ("hidden", "hh")):
                    path = ("lstm", f"layer_{layer}", direction, part)
                    for leaf, word in (("kernel", "weight"), ("bias", "bias")):
                        names[*path, leaf] = f"{PROMPT}lstm_head.{word}_{short}_l{layer}{suffix}"
    return names


def is_extra(key: str) -> bool:
    """Whether a tensor belongs to a soft prompt or a classification head."""
    return key.startswith(PROMPT) or any(key in _head(flavor).values() for flavor in _HEAD_NAMES)


def read(tensors: Mapping[str, LazyTensor], width: int) -> dict[str, Any]:
    """The soft prompt and the classification head among `tensors`, where there are any, as trees of NumPy arrays.

    Raises FormatError for parts that are missing, superfluous or of another width than the model.
    """
    prompts = {key: tensor for key, tensor in tensors.items() if key.startswith(PROMPT)}
    heads = {key: tensor for key, tensor in tensors.items() if not key.startswith(PROMPT)}
    result = {}
    if prompts:
        function = "lstm" if any(".lstm_head." in key for key in prompts) else "mlp" if len(prompts) > 1 else "none"
        vectors = prompts.get(f"{PROMPT}spell_embeddings.weight")
        size = vectors.shape[0] if vectors and vectors.shape else 0
        result["prompt"] = _read(
            prompts, _prompt(function), lambda path: _prompt_shape(path, size, width, function), "soft prompt"
        )
    if heads:
        flavor = "hub" if "dense.weight" in heads or "out_proj.weight" in heads else "megatron"
        output = heads.get(_head(flavor)["output", "kernel"])
        classes = output.shape[0] if output and output.shape else 0
        shapes = {"pool": (width, width), "output": (classes, width)}
        result["classifier"] = _read(
            heads,
            _head(flavor),
            lambda path: shapes[path[0]] if path[1] == "kernel" else shapes[path[0]][:1],
            "classification head",
        )
    return result


def _prompt_shape(path, size, width, function):
    if path == ("embedding",):
        return size, width
    if path[0] == "mlp":
        inputs, outputs = (2 * width if function == "lstm" and path[1] == "first" else width), width
    else:
        inputs, outputs = (2 * width if path[1] == "layer_1" and path[3] == "input" else width), 4 * width
    return (outputs, inputs) if path[-1] == "kernel" else (outputs,)


def _read(tensors, names, shape_of, what):
    problems = [f"{key} is missing" for key in names.values() if key not in tensors]
    problems += [f"{key} is unexpected" for key in tensors if key not in names.values()]
    problems += [
        f"{key} is {tensors[key].shape}, expected {shape_of(path)}"
        for path, key in names.items()
        if key in tensors and tensors[key].shape != shape_of(path)
    ]
    if problems:
        raise FormatError(f"the checkpoint's {what} is incomplete or of another model: {listing(problems)}")
    tree: dict = {}
    for path, key in names.items():
        array = tensors[key].read().astype(np.float32)
        if not np.isfinite(array).all():
            raise FormatError(f"{key} from {tensors[key].file} has NaN or infinity in it")
        branch = tree
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        branch[path[-1]] = np.ascontiguousarray(array.T) if path[-1] == "kernel" else array
    return tree


def state_dict(params: Mapping[str, Any], flavor: str, dtype: np.dtype) -> dict[str, LazyTensor]:
    """The inverse of `read`, of the parameters that have such parts; `flavor` is "megatron" or "hub"."""
    result = {}
    names_of = {"prompt": _prompt(function_of(params.get("prompt"))), "classifier": _head(flavor)}
    for part, names in names_of.items():
        for path, key in names.items() if part in params else ():
            leaf = params[part]
            for name in path:
                leaf = leaf[name]
            array = np.asarray(leaf).astype(dtype)
            result[key] = of_array(np.ascontiguousarray(array.T) if path[-1] == "kernel" else array)
    return result


def function_of(prompt: Mapping[str, Any] | None) -> str:
    """The original's name for how a soft prompt is made: none, mlp or lstm."""
    return next((name for name in ("lstm", "mlp") if prompt and name in prompt), "none")
