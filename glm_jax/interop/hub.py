"""Checkpoints of the Hugging Face hub: config.json and PyTorch or safetensors files, in one piece or several."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from glm_jax.files import write_json_atomic
from glm_jax.interop import safetensors_file, torch_file
from glm_jax.interop.errors import FormatError, UnsafeFileError, listing
from glm_jax.interop.source import Source, drop_tied_head, plain_names
from glm_jax.interop.tensors import LazyTensor
from glm_jax.model.config import GLMConfig

CONFIG = "config.json"
_SAFETENSORS, _TORCH = "model.safetensors", "pytorch_model.bin"
_MODEL_NOTE = "glm_jax.model"  # our files state the model a second time, so that a damaged config.json is noticed
# GLMConfig's field -> the names in config.json; the second is transformers' common one.
FIELDS = {
    "vocab_size": ("vocab_size",),
    "num_layers": ("num_layers", "num_hidden_layers"),
    "hidden_size": ("hidden_size",),
    "num_heads": ("num_attention_heads",),
    "max_position_embeddings": ("max_sequence_length",),
    "block_positions": ("block_position_encoding",),
    "attention_dropout": ("attention_dropout_prob",),
    "hidden_dropout": ("output_dropout_prob",),
    "gelu": ("gelu",),
}
_SHARD_BYTES = 5_000_000_000


def recognizes(folder: pathlib.Path) -> bool:
    """Whether `folder` looks like a model of the hub."""
    return _weights(folder) is not None


def _weights(folder):
    """The file that lists or holds the weights; safetensors first."""
    names = (_SAFETENSORS, f"{_SAFETENSORS}.index.json", _TORCH, f"{_TORCH}.index.json")
    if listed := next((folder / name for name in names if (folder / name).is_file()), None):
        return listed
    others = sorted([*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")])
    return others[0] if len(others) == 1 else folder if others else None


def open_folder(folder: pathlib.Path) -> Source:
    """Opens a model of the hub; reads descriptions only.

    Raises FormatError (UnsafeFileError among them) for a config or an index that is damaged, leaves the folder or does
    not fit the files, for missing and for damaged files.
    """
    weights = _weights(folder)
    notes: list[str] = []
    if weights == folder:
        raise FormatError(f"{folder} holds parts of a model, but not their index (model.safetensors.index.json)")
    files = _read_index(weights) if weights.suffix == ".json" else {weights: None}
    tensors: dict[str, Any] = {}
    declared = read_config(folder / CONFIG, notes)
    for path, expected in files.items():
        content, metadata = _read(path)
        if expected is not None and (differing := sorted(set(expected) ^ set(content))):
            raise FormatError(
                f"{weights.name} and {path} do not agree about {listing(differing)}: files of different models"
            )
        tensors |= content
        for key, value in _stated(metadata, path).items():
            if declared.setdefault(key, value) != value:
                raise FormatError(f"{folder / CONFIG} says {key} {declared[key]!r}, but {path} is of {value!r}")
    tensors = plain_names(tensors, str(folder))
    drop_tied_head(tensors, notes)
    declared.setdefault("gelu", "exact")
    return Source("hub", folder, tensors, declared, notes=notes)


def _read(path):
    if not path.is_file():
        raise FormatError(f"{path} is missing; the index of its folder needs it")
    if path.suffix == ".safetensors":
        return safetensors_file.read(path)
    value = torch_file.read(path)
    value = value["module"] if isinstance(value, dict) and isinstance(value.get("module"), dict) else value
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds a {type(value).__name__} instead of a dictionary with weights")
    return value, {}


def _stated(metadata, path):
    stated = _json(metadata.get(_MODEL_NOTE, "{}"), f"{path}: its description of the model")
    if not set(stated) <= set(FIELDS):
        raise FormatError(f"{path}: its description of the model is damaged")
    return stated


def _read_index(path):
    """File -> names of its tensors."""
    mapping = _json(path, str(path)).get("weight_map")
    if not isinstance(mapping, dict) or not mapping or not all(isinstance(name, str) for name in mapping.values()):
        raise FormatError(f"{path} has no weight_map from tensors to files")
    files: dict[pathlib.Path, list[str]] = {}
    for key, name in mapping.items():
        if name in ("", ".", "..") or set(name) & set("/\\:\0"):
            raise UnsafeFileError(f"{path} sends {key[:100]!r} to {name!r}, which is not a file in its own folder")
        if not name.endswith((".safetensors", ".bin")):
            raise FormatError(f"{path} sends {key[:100]!r} to {name!r}; weights are in .safetensors or .bin files")
        files.setdefault(path.parent / name, []).append(key)
    return files


def _json(source, where) -> dict:
    """A JSON object from a path or a text."""
    try:
        value = json.loads(source.read_bytes().decode() if isinstance(source, pathlib.Path) else source)
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{where} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{where} is no JSON object")
    return value


def read_config(path: pathlib.Path, notes: list[str]) -> dict[str, Any]:
    """Fields of GLMConfig that a config.json states; none when there is no file. Raises FormatError."""
    if not path.is_file():
        notes.append(f"{path.name} is missing; the model was inferred from the shapes of its tensors")
        return {}
    config = _json(path, str(path))
    if config.get("model_type", "glm") != "glm" or config.get("relative_encoding"):
        raise FormatError(
            f"{path} describes a {str(config.get('model_type'))[:50]!r} model"
            f"{' with relative positions' if config.get('relative_encoding') else ''}; only GLM (2022) can be read"
        )
    declared: dict[str, Any] = {}
    for field, names in FIELDS.items():
        values = {name: config[name] for name in names if config.get(name) is not None}
        kinds = {"block_positions": bool, "gelu": str, "attention_dropout": float, "hidden_dropout": float}
        kind = kinds.get(field, int)
        for name, value in values.items():
            value = float(value) if kind is float and type(value) is int else value
            if type(value) is not kind:
                raise FormatError(f"{path}: {name} is {str(value)[:50]!r}, expected a {kind.__name__}")
            if declared.setdefault(field, value) != value:
                raise FormatError(f"{path}: {' and '.join(values)} differ: {values}")
    if config.get("attention_scale", 1.0) not in (1, 1.0):
        notes.append("attention_scale is ignored: it changes rounding only")
    return declared


def config_json(config: GLMConfig, dtype: str, *, prompt: tuple[str, int] | None, classifier: bool) -> dict[str, Any]:
    """What the hub's code expects in config.json; `prompt` is (how it is made, number of vectors)."""
    code = {"AutoConfig": "configuration_glm.GLMConfig", "AutoModel": "modeling_glm.GLMModel"}
    for task, name in (
        ("Seq2SeqLM", "ConditionalGeneration"),
        ("MultipleChoice", "MultipleChoice"),
        ("SequenceClassification", "SequenceClassification"),
    ):
        code[f"AutoModelFor{task}"] = f"modeling_glm.GLMFor{name}"
    return {
        "architectures": ["GLMForSequenceClassification" if classifier else "GLMModel"],
        "attention_dropout_prob": config.attention_dropout,
        "attention_scale": 1.0,
        "auto_map": code,
        "block_position_encoding": config.block_positions,
        "checkpoint_activations": False,
        "checkpoint_num_layers": 1,
        "embedding_dropout_prob": config.hidden_dropout,
        "gelu": config.gelu,
        "hidden_size": config.hidden_size,
        "initializer_range": config.init_std,
        "max_sequence_length": config.max_position_embeddings,
        "model_type": "glm",
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_layers,
        "output_dropout_prob": config.hidden_dropout,
        "output_predict": True,
        "parallel_output": True,
        "pool_token": "cls",
        "relative_encoding": False,
        "spell_func": prompt[0] if prompt else "lstm",
        "spell_length": prompt[1] if prompt else None,
        "torch_dtype": dtype,
        "vocab_size": config.vocab_size,
    }


def write_folder(
    folder: pathlib.Path,
    tensors: Mapping[str, LazyTensor],
    config: Mapping[str, Any],
    stated: Mapping[str, Any],
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Writes safetensors of at most `shard_bytes` (or one tensor) and config.json.

    Args:
      config: from `config_json`.
      stated: fields of GLMConfig to repeat beside the tensors.
    """
    shards: list[dict[str, LazyTensor]] = [{}]
    for key, tensor in tensors.items():
        if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > shard_bytes:
            shards.append({})
        shards[-1][key] = tensor
    notes = {_MODEL_NOTE: json.dumps(dict(stated))}
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else [_SAFETENSORS]
    for name, shard in zip(names, shards, strict=True):
        safetensors_file.write(folder / name, shard, notes)
    if len(shards) > 1:
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json_atomic(folder / f"{_SAFETENSORS}.index.json", index)
    write_json_atomic(folder / CONFIG, dict(config))
