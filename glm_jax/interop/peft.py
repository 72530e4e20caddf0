"""LoRA in the layout of peft (adapter_config.json, adapter_model.safetensors), read and written.

Names are those of the hub's GLM: base_model.model.transformer.layers.N.attention.query_key_value.lora_A.weight [r in],
lora_B.weight [out r]. Facts from peft 0.21.2, Apache-2.0.
"""

import dataclasses
import json
import logging
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from glm_jax.files import write_json_atomic
from glm_jax.interop import safetensors_file
from glm_jax.interop.errors import FormatError, listing
from glm_jax.interop.folders import new_folder
from glm_jax.interop.tensors import of_array
from glm_jax.methods import LoRA
from glm_jax.methods.lora import kernels
from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import init_params

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Keys that change what is computed, with the value that this reader implements.
_ONLY = {
    "fan_in_fan_out": False, "bias": "none", "use_dora": False, "modules_to_save": None, "lora_bias": False,
    "layer_replication": None, "trainable_token_indices": None,
    "alora_invocation_tokens": None, "target_parameters": None, "use_qalora": False, "exclude_modules": None,
}  # fmt: skip
_KNOWN = {
    "peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "layers_to_transform",
    "rank_pattern", "alpha_pattern", "layers_pattern", "task_type", "inference_mode", "base_model_name_or_path",
    "revision", "auto_mapping", "init_lora_weights", "megatron_config", "megatron_core", "loftq_config", "eva_config",
    "corda_config",
    "peft_version", "runtime_config", "qalora_group_size", "ensure_weight_tying", "arrow_config",
}  # fmt: skip
_KEY = re.compile(r"base_model\.model\.(?:\w+\.)*?layers\.(\d+)\.([\w.]+)\.lora_([AB])\.weight")


def recognizes(folder: pathlib.Path) -> bool:
    """Whether `folder` holds an adapter of peft."""
    return (folder / CONFIG).is_file()


def _modules(config: GLMConfig) -> dict[str, tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]]:
    """Name in a layer -> (path, input axes, output axes)."""
    shapes = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    result = {}
    for path, module in kernels(shapes["layers"]):
        outputs = module["bias"].value.shape[1:]
        kernel = module["kernel"].value.shape[1:]
        result[".".join(path)] = (path, kernel[: len(kernel) - len(outputs)], outputs)
    return result


def read(folder: pathlib.Path, config: GLMConfig) -> tuple[LoRA, dict[str, Any]]:
    """The method and its parameters.

    Keys of adapter_config.json that are not known are listed in a warning. Raises FormatError for another kind of
    adapter than LoRA, settings that are not implemented, and tensors that are not those of this model.
    """
    path = folder / CONFIG
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path} cannot be read: {error}") from error
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        kind = settings.get("peft_type") if isinstance(settings, dict) else type(settings).__name__
        raise FormatError(f"{path}: peft_type {kind!r}; of peft's adapters only LORA can be read")
    for key, value in _ONLY.items():
        if settings.get(key, value) not in (value, None, {}, [], False if value is False else value):
            raise FormatError(f"{path}: {key} = {settings[key]!r} is not implemented; only {value!r} is")
    if unknown := sorted(set(settings) - _KNOWN - set(_ONLY)):
        logger.warning("%s: keys that are not known, and not used: %s", path, ", ".join(unknown))
    rank, modules = settings.get("r"), _modules(config)
    if not isinstance(rank, int) or rank < 1:
        raise FormatError(f"{path}: r = {rank!r} is no rank: peft writes a whole number there")
    tensors, _ = safetensors_file.read(folder / WEIGHTS)
    ranks, alphas = (_by_module(settings, key, modules, path) for key in ("rank_pattern", "alpha_pattern"))
    found: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    problems = []
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if not match or match[2] not in modules or int(match[1]) >= config.num_layers:
            problems.append(f"{key} is of no layer of the model")
            continue
        _, inputs, outputs = modules[match[2]]
        own = ranks.get(match[2], rank)
        shape = (own, int(np.prod(inputs))) if match[3] == "A" else (int(np.prod(outputs)), own)
        if tensor.shape != shape:
            problems.append(f"{key} is {tensor.shape}, expected {shape}")
            continue
        found.setdefault(match[2], {"A": {}, "B": {}})[match[3]][int(match[1])] = tensor.read()
    for name, sides in found.items():
        if set(sides["A"]) != set(sides["B"]):
            problems.append(f"{name} has lora_A and lora_B in different layers")
    if problems or not found:
        raise FormatError(f"{folder / WEIGHTS}: {listing(problems) if problems else 'no LoRA tensors'}")
    layers = sorted({layer for sides in found.values() for layer in sides["A"]})
    common = {
        "alpha": settings.get("lora_alpha", 8), "rank_stabilized": bool(settings.get("use_rslora")),
        "dropout": settings.get("lora_dropout") or 0.0, "targets": tuple(modules[name][0][-1] for name in found),
        "layers": None if layers == list(range(config.num_layers)) else tuple(layers),
    }  # fmt: skip
    # One rank for all: factors of a lower one are padded with zeros, which changes no product.
    largest = max(ranks.get(name, rank) for name in found)
    scale = LoRA(rank=rank, **common).scale
    common["alpha"] = scale * (largest**0.5 if common["rank_stabilized"] else largest)
    method = LoRA(rank=largest, **common)
    trained: dict[str, Any] = {}
    for name, sides in found.items():
        module_path, inputs, outputs = modules[name]
        own = ranks.get(name, rank)
        own_alpha = alphas.get(name, settings.get("lora_alpha", 8))
        factor = dataclasses.replace(method, rank=own, alpha=own_alpha).scale / scale
        a = np.zeros((config.num_layers, *inputs, largest), np.float32)
        b = np.zeros((config.num_layers, largest, *outputs), np.float32)
        for layer in sides["A"]:
            a[layer, ..., :own] = sides["A"][layer].astype(np.float32).T.reshape(*inputs, own)
            b[layer, :own] = factor * sides["B"][layer].astype(np.float32).T.reshape(own, *outputs)
        branch = trained
        for part in ("layers", *module_path):
            branch = branch.setdefault(part, {})
        branch |= {"lora_a": a, "lora_b": b}
    return method, trained


def _by_module(settings, key, modules, path):
    """rank_pattern or alpha_pattern, by the name of a module in a layer."""
    result = {}
    for pattern, value in (settings.get(key) or {}).items():
        names = [name for name in modules if name == pattern or name.endswith(f".{pattern}")]
        if not names:
            raise FormatError(f"{path}: {key} has {pattern!r}, which is the name of no module here")
        result |= dict.fromkeys(names, value)
    return result


def write(
    path: str | os.PathLike, method: LoRA, trained: Mapping[str, Any], config: GLMConfig, base_name: str,
    prefix: str = "",
) -> None:  # fmt: skip
    """Writes the new folder `path`.

    A pair of factors for each of query, key and value becomes one pair of three times the rank, in rank_pattern.

    Args:
      trained: LoRA's factors in the tree of the model.
      prefix: of the module names; "glm." where the hub's model has a head.

    Raises ValueError for a folder that exists.
    """
    tensors, modules, patterns = {}, _modules(config), {}
    for name, (module_path, inputs, outputs) in modules.items():
        branch: Any = trained
        for part in ("layers", *module_path):
            branch = branch.get(part, {}) if isinstance(branch, Mapping) else {}
        if "lora_a" not in branch:
            continue
        a, b = np.asarray(branch["lora_a"], np.float32), np.asarray(branch["lora_b"], np.float32)
        rank = method.rank
        if a.ndim == 2 + len(inputs) + 1:  # a pair for each of query, key and value
            a, b = _as_one_pair(a, b)
            rank *= 3
            patterns[module_path[-1]] = rank
        for layer in range(config.num_layers) if method.layers is None else method.layers:
            key = f"base_model.model.{prefix}transformer.layers.{layer}.{name}"
            tensors[f"{key}.lora_A.weight"] = of_array(a[layer].reshape(int(np.prod(inputs)), rank).T.copy())
            tensors[f"{key}.lora_B.weight"] = of_array(b[layer].reshape(rank, int(np.prod(outputs))).T.copy())
    targets = sorted({key.split(".")[-3] for key in tensors})
    scale_of = (lambda rank: rank**0.5) if method.rank_stabilized else (lambda rank: rank)
    settings = {
        "peft_type": "LORA", "r": method.rank, "lora_alpha": method.alpha, "lora_dropout": method.dropout,
        "use_rslora": method.rank_stabilized, "bias": "none", "fan_in_fan_out": False, "target_modules": targets,
        "layers_to_transform": None if method.layers is None else list(method.layers),
        "layers_pattern": None if method.layers is None else "layers",
        "rank_pattern": patterns,
        "alpha_pattern": {name: method.scale * scale_of(rank) for name, rank in patterns.items()},
        "base_model_name_or_path": base_name, "inference_mode": True, "task_type": None,
    }  # fmt: skip
    with new_folder(pathlib.Path(path)) as folder:
        safetensors_file.write(folder / WEIGHTS, tensors)
        write_json_atomic(folder / CONFIG, settings)


def _as_one_pair(a, b):
    """[Y D 3 r] and [Y 3 r N H] -> [Y D 3r] and [Y 3r 3 N H], whose product is the same."""
    layers, width, parts, rank = a.shape
    wide = np.zeros((layers, parts * rank, parts, *b.shape[3:]), b.dtype)
    for part in range(parts):
        wide[:, part * rank : (part + 1) * rank, part] = b[:, part]
    return a.reshape(layers, width, parts * rank), wide
