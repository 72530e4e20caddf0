"""Adapters on disk: what a tuning method has trained, without the model that it belongs to.

adapter.json          method, settings, head, and the name and fingerprint of the base
adapter.safetensors   the trained parameters, by their path in the parameter tree ("prefix/keys")
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from glm_jax.files import write_json_atomic
from glm_jax.interop import peft, safetensors_file
from glm_jax.interop.errors import FormatError
from glm_jax.interop.extras import EXTRAS
from glm_jax.interop.folders import new_folder
from glm_jax.interop.placement import replicate
from glm_jax.interop.tensors import of_array
from glm_jax.methods import Method, make_method, with_joined_layers
from glm_jax.methods.base import HEAD, merge_trees
from glm_jax.model.adapters import projected_prefix
from glm_jax.model.config import GLMConfig
from glm_jax.training.checksum import checksums

SETTINGS_FILE, WEIGHTS_FILE = "adapter.json", "adapter.safetensors"
VERSION = 1
_BASE_FIELDS = ("num_layers", "hidden_size", "num_heads", "vocab_size")


def fingerprint(params: Mapping[str, Any]) -> str:
    """Of a model's own parameters, the same for every sharding, and for float32 and bfloat16 copies of them."""
    return checksums({"params": _rounded(_of_model(params))})["params"]


def _of_model(params):
    return {name: tree for name, tree in params.items() if name not in EXTRAS}


@jax.jit
def _rounded(params):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)


def recognizes(folder: pathlib.Path) -> bool:
    """Whether `folder` holds an adapter of this package."""
    return (folder / SETTINGS_FILE).is_file()


def write_adapter(
    path: str | os.PathLike, method: Method, trained: Mapping[str, Any], config: GLMConfig, base: Mapping[str, Any],
    pool: str = "cls",
) -> None:  # fmt: skip
    """Writes the new folder `path`, or replaces the adapter that is there.

    Args:
      trained: what `method.split` gives; a head among it goes along.
      base: {"name", "fingerprint"} of the model that was adapted.
      pool: the token that the head reads.

    Raises ValueError for a folder that holds something else.
    """
    trained = _as_saved(trained, config)
    tensors = {name: of_array(np.asarray(leaf, np.float32)) for name, leaf in flatten_dict(trained, sep="/").items()}
    head = trained.get(HEAD)
    settings = {
        "format": "glm_jax adapter",
        "version": VERSION,
        "method": method.name,
        "settings": method.hyperparameters(),
        "head": None if head is None else {"classes": int(head["output"]["bias"].shape[0]), "pool": pool},
        "base": {**base, **{name: getattr(config, name) for name in _BASE_FIELDS}},
    }
    with new_folder(pathlib.Path(path), replaces=recognizes) as folder:
        safetensors_file.write(folder / WEIGHTS_FILE, tensors)
        write_json_atomic(folder / SETTINGS_FILE, settings)


def _as_saved(trained, config):
    """A prefix that an MLP makes is saved as its keys and values."""
    prefix = trained.get("prefix")
    if prefix is None or "mlp" not in prefix:
        return trained
    keys, values = projected_prefix(prefix, config.num_layers, config.num_heads, config.head_width)
    return dict(trained) | {"prefix": {"keys": keys[:, 0], "values": values[:, 0]}}


def read_settings(folder: pathlib.Path) -> dict[str, Any]:
    """adapter.json. Raises FormatError for one that is damaged, of a newer format, or of an unknown method."""
    path = folder / SETTINGS_FILE
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path} cannot be read: {error}") from error
    fields = {"format", "version", "method", "settings", "head", "base"}
    if not isinstance(settings, dict) or settings.get("format") != "glm_jax adapter" or not fields <= set(settings):
        raise FormatError(f"{path} does not describe an adapter")
    if settings["version"] != VERSION:
        raise FormatError(
            f"{path} has version {settings['version']}, but this glm_jax reads {VERSION}: open it with a newer glm_jax"
        )
    return settings


def open_adapter(
    path: str | os.PathLike, params: Mapping[str, Any], config: GLMConfig, base_name: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters of a model with the adapter in the folder `path`, and what its adapter.json says.

    `path` is an adapter, a run that has one, or an adapter in peft's layout; `params` are those of its base, whose
    arrays are shared. Raises FormatError for a folder that is none, damaged files, and the adapter of another base.
    """
    folder = pathlib.Path(path)
    if recognizes(folder / "adapter"):  # a run's
        folder = folder / "adapter"
    own = _of_model(params)
    if peft.recognizes(folder):
        method, trained = peft.read(folder, config)
        return combine(method, replicate(trained, own), params), {
            "method": method.name,
            "settings": method.hyperparameters(),
            "head": None,
        }
    if not recognizes(folder):
        if not folder.is_dir():
            raise FormatError(f"{folder} does not exist: give the folder of an adapter")
        raise FormatError(f"{folder} holds no adapter: expected {SETTINGS_FILE}, or {peft.CONFIG} of peft")
    settings = read_settings(folder)
    base, found = settings["base"], fingerprint(params)
    shape = {name: getattr(config, name) for name in _BASE_FIELDS}
    if {name: base.get(name) for name in _BASE_FIELDS} != shape or base.get("fingerprint") != found:
        raise FormatError(
            f"the adapter {folder} was trained on {base.get('name')} (parameters {base.get('fingerprint')}), not on "
            f"{base_name} ({found}): open that one"
        )
    try:
        method = make_method(settings["method"], settings["settings"])
    except (ValueError, TypeError) as error:
        raise FormatError(f"{folder / SETTINGS_FILE}: {error}") from error
    tensors, _ = safetensors_file.read(folder / WEIGHTS_FILE)
    arrays = {name: tensor.read() for name, tensor in tensors.items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise FormatError(f"{folder / WEIGHTS_FILE}: {name} has NaN or infinity in it")
    trained = unflatten_dict(arrays, sep="/")
    _check(trained, method, own, config, folder)
    return combine(method, replicate(trained, own), params), settings


def _check(trained, method, own, config, folder):
    """Raises FormatError unless the tensors are those that the method trains on this base."""
    abstract = jax.eval_shape(lambda params, key: method.add(params, config, key), own, jax.random.key(0))
    expected = {name: leaf.shape for name, leaf in flatten_dict(method.split(abstract)[0], sep="/").items()}
    if any(name.startswith("prefix/mlp") for name in expected):
        heads = (config.num_layers, method.length, config.num_heads, config.head_width)
        expected = {"prefix/keys": heads, "prefix/values": heads}
    actual = {name: leaf.shape for name, leaf in flatten_dict(trained, sep="/").items()}
    actual = {name: shape for name, shape in actual.items() if not name.startswith(f"{HEAD}/")}
    if actual != expected:
        name = sorted(n for n in actual | expected if actual.get(n) != expected.get(n))[0]
        raise FormatError(
            f"{folder / WEIGHTS_FILE}: {name} is {actual.get(name, 'missing')}, but the method {method.name} has "
            f"{expected.get(name, 'no such parameter')}"
        )


def combine(method: Method, trained: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """`params` of the base with what was trained, in the tree that `GLM` takes."""
    _, frozen = method.split(params)
    trained = merge_trees(replicate(method.constants(trained), params), trained)
    return with_joined_layers(method.join(trained, frozen))
