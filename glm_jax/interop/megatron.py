"""The original's own checkpoints: a tracker file, a folder for the iteration, a PyTorch file for each shard."""

import hashlib
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from glm_jax.interop import model_parallel, torch_file
from glm_jax.interop.errors import FormatError, UnsafeFileError, listing
from glm_jax.interop.source import Source, drop_tied_head, plain_names
from glm_jax.interop.tensors import LazyTensor

TRACKER, DEEPSPEED_TRACKER = "latest_checkpointed_iteration.txt", "latest"
_SHARD = re.compile(r"mp_rank_(\d+)_model_states\.pt")


def recognizes(folder: pathlib.Path) -> bool:
    """Whether `folder` looks like a checkpoint of the original."""
    return any((folder / name).is_file() for name in (TRACKER, DEEPSPEED_TRACKER)) or any(_shards(folder))


def open_folder(folder: pathlib.Path) -> Source:
    """Opens a checkpoint with any number of shards; reads descriptions only.

    Raises FormatError (UnsafeFileError among them) for a tracker that leads nowhere, a missing shard, damaged files,
    and shards of different models.
    """
    tag = _tag_folder(folder)
    files = dict(sorted(_shards(tag)))
    if not files:
        raise FormatError(f"{tag} has no mp_rank_XX_model_states.pt; it is where the tracker file of {folder} points")
    missing = [f"mp_rank_{i:02d}_model_states.pt" for i in range(max(files)) if i not in files]
    if missing:
        raise FormatError(f"{tag} lacks {listing(missing)}: {len(files)} shards of at least {max(files) + 1} are there")
    values = [torch_file.read(path) for path in files.values()]
    states = [
        plain_names(_state_dict(value, path), str(path)) for value, path in zip(values, files.values(), strict=True)
    ]
    first = next(iter(files.values()))
    metadata = {key: value for key, value in values[0].items() if _plain(key, value)} if "module" in values[0] else {}
    stated = metadata.get("mp_world_size")
    if isinstance(stated, int) and stated != len(files):
        raise FormatError(f"{first} says that there are {stated} shards (mp_world_size), but {tag} has {len(files)}")
    notes = [f"{len(files)} model-parallel shard(s) of {tag}"]
    tensors = states[0] if len(states) == 1 else _merge(states, list(files.values()))
    for value, path in zip(values, files.values(), strict=True):
        if "module" in value and value.get("iteration") != values[0].get("iteration"):
            raise FormatError(
                f"{path} is of iteration {value.get('iteration')}, {first} of {values[0].get('iteration')}: "
                "the shards are of different checkpoints"
            )
    drop_tied_head(tensors, notes)
    return Source("megatron", folder, tensors, {"gelu": "tanh"}, metadata, notes)


def _shards(folder):
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := _SHARD.fullmatch(path.name):
            yield int(match[1]), path


def _tag_folder(folder):
    for name in (TRACKER, DEEPSPEED_TRACKER):
        if not (folder / name).is_file():
            continue
        try:
            tag = (folder / name).read_bytes()[:1000].decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise FormatError(f"{folder / name} is damaged ({error}); it should hold an iteration number") from error
        if not re.fullmatch(r"\w[\w.+-]{,99}", tag):
            raise UnsafeFileError(f"{folder / name} points to {tag[:100]!r}, which is not a folder beside it")
        if not (folder / tag).is_dir():
            raise FormatError(f"{folder / name} says {tag}, but {folder / tag} does not exist; mend the tracker file")
        return folder / tag
    return folder


def _state_dict(value, path):
    for _ in range(3):
        if isinstance(value, dict) and isinstance(value.get("module"), dict):
            value = value["module"]
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds a {type(value).__name__} instead of a dictionary with weights")
    return value


def _plain(key, value):
    return isinstance(key, str) and key != "module" and isinstance(value, (int, float, str)) and len(str(value)) < 1000


def _merge(states, paths):
    for state, path in zip(states, paths, strict=True):
        if missing := sorted(set(states[0]) ^ set(state)):
            raise FormatError(
                f"{paths[0]} and {path} do not hold the same tensors ({listing(missing)}): shards of different models"
            )
    merged = {}
    for key in states[0]:
        parts = [state[key] for state in states]
        kinds = {(part.shape, part.dtype) for part in parts}
        if len(kinds) > 1:
            shapes = ", ".join(f"{part.dtype}{part.shape}" for part in parts)
            raise FormatError(f"{key} is {shapes} in the shards of {paths[0].parent}: shards of different models")
        merged[key] = _merged(key, parts)
    return merged


def _merged(key, parts):
    split = model_parallel.split_of(key)
    shape = model_parallel.joined_shape(parts[0].shape, split, len(parts))

    def read() -> np.ndarray:
        if split is not None:
            arrays = [part.read() for part in parts]
            if len(parts[0].shape) == 2 and len({hashlib.blake2b(array).digest() for array in arrays}) < len(arrays):
                raise FormatError(f"{key} is the same in two shards of {tag}: one shard is there twice")
            return model_parallel.join(arrays, split)
        array = parts[0].read()
        for part in parts[1:]:
            if part.read().tobytes() != array.tobytes():
                raise FormatError(f"{key} differs between {parts[0].file} and {part.file}: shards of different models")
        return array

    tag = pathlib.Path(parts[0].file).parent
    files = parts[0].file + "".join(f" + {pathlib.Path(part.file).name}" for part in parts[1:])
    return LazyTensor(shape, parts[0].dtype, read, files, all(part.checksum for part in parts))


def write_folder(
    folder: pathlib.Path, tensors: Mapping[str, LazyTensor], count: int, metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes what the original's load_checkpoint reads, cut into `count` shards.

    Raises ValueError when a tensor cannot be cut into `count` equal parts.
    """
    defaults = {"iteration": 0, "dp_world_size": 1, "global_steps": 0, "skipped_steps": 0, "global_samples": 0}
    metadata = {**defaults, **(metadata or {}), "mp_world_size": count}
    iteration = metadata["iteration"]
    if type(iteration) is not int or iteration < 0:
        raise ValueError(f"iteration {iteration!r} must be a whole number: it becomes the name of a folder")
    shapes = {
        key: model_parallel.cut_shape(tensor.shape, model_parallel.split_of(key), count, key)
        for key, tensor in tensors.items()
    }
    (folder / str(iteration)).mkdir(parents=True)
    for index in range(count):
        shard = {key: _part(key, tensor, shapes[key], index, count) for key, tensor in tensors.items()}
        path = folder / str(iteration) / f"mp_rank_{index:02d}_model_states.pt"
        torch_file.write(path, {**metadata, "module": shard})
    for name in (TRACKER, DEEPSPEED_TRACKER):
        (folder / name).write_text(f"{iteration}\n")


def _part(key, tensor, shape, index, count):
    split = model_parallel.split_of(key)
    return LazyTensor(shape, tensor.dtype, lambda: model_parallel.cut(tensor.read(), split, index, count))
