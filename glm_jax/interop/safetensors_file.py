"""The safetensors format, read tensor by tensor and written.

A file is the length of its header (8 bytes), the header (JSON: name -> dtype, shape, bytes from-to) and the arrays.
The format has no checksums; files written here carry the CRC-32 of every array in the header's free-form metadata,
where other readers ignore it.
"""

import json
import math
import pathlib
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from glm_jax.interop.errors import FormatError
from glm_jax.interop.tensors import DTYPES, LazyTensor

_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_CHECKSUMS = "glm_jax.crc32"
_LARGEST_HEADER = 100_000_000  # the limit of the reference implementation


def read(path: pathlib.Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """The tensors of a file, not yet read, and its metadata. Raises FormatError."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else 0
            if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
                raise FormatError(f"{path} is truncated or no safetensors file: its header would have {length} bytes")
            header = file.read(length)
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error}") from error
    try:
        entries = json.loads(header, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: its header is damaged ({error})") from error
    if not isinstance(entries, dict):
        raise FormatError(f"{path}: its header is no JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{path}: its metadata is damaged")
    checksums = _checksums(metadata, entries, path)
    tensors, end = {}, 0
    for begin, stop, name in sorted((*_extent(name, entry, path), name) for name, entry in entries.items()):
        entry = entries[name]
        dtype, shape = DTYPES[_NAMES[entry["dtype"]]], tuple(entry["shape"])
        if begin != end or stop - begin != math.prod(shape) * dtype.itemsize:
            raise FormatError(f"{path}: {name} of {dtype}{shape} cannot lie at {begin} to {stop}, after {end}")
        tensors[name] = _lazy(path, name, 8 + length + begin, dtype, shape, checksums.get(name))
        end = stop
    if 8 + length + end != size:
        raise FormatError(f"{path} has {size} bytes, but its header describes {8 + length + end}; fetch it again")
    return tensors, {key: value for key, value in metadata.items() if key != _CHECKSUMS}


def _unique(pairs):
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _extent(name, entry, path) -> tuple[int, int]:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if len(entry) == 3:
            if dtype not in _NAMES:
                raise FormatError(f"{path}: {name} has the dtype {dtype!r}; known: {', '.join(_NAMES)}")
            if len(shape) <= 8 and all(type(n) is int and 0 <= n < 1 << 62 for n in (begin, end, *shape)):
                return begin, end
    raise FormatError(f"{path}: the header's entry for {name[:100]} is damaged")


def _checksums(metadata: Mapping[str, str], entries: Mapping[str, Any], path) -> dict[str, str]:
    if _CHECKSUMS not in metadata:
        return {}
    try:
        checksums = json.loads(metadata[_CHECKSUMS])
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: its checksums are damaged ({error})") from error
    if not isinstance(checksums, dict) or set(checksums) != set(entries):
        raise FormatError(f"{path}: its checksums are not those of its tensors")
    return checksums


def _lazy(path, name, start, dtype, shape, checksum):
    def load() -> np.ndarray:
        array = np.empty(shape, dtype)
        view = memoryview(array.reshape(-1).view(np.uint8))
        try:
            with path.open("rb") as file:
                file.seek(start)
                if file.readinto(view) != len(view):
                    raise FormatError(f"{path} breaks off inside {name}; fetch it again")
        except OSError as error:
            raise FormatError(f"cannot read {path}: {error}") from error
        if checksum is not None and f"{zlib.crc32(view):08x}" != checksum:
            raise FormatError(f"{path}: the checksum of {name} is {zlib.crc32(view):08x}, but {checksum} was saved")
        return array

    return LazyTensor(shape, dtype, load, str(path), checksum is not None)


def write(path: pathlib.Path, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a file, reading one tensor at a time. Checksums go into the header last, over zeros of their length."""
    names = {DTYPES[name]: code for code, name in _NAMES.items()}
    entries, end = {}, 0
    for name, tensor in tensors.items():
        entries[name] = {
            "dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]
        }  # fmt: skip
        end += tensor.nbytes

    def header(checksums):
        notes = {"format": "pt", **(metadata or {}), _CHECKSUMS: json.dumps(checksums, separators=(",", ":"))}
        text = json.dumps({"__metadata__": notes, **entries}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    checksums = dict.fromkeys(tensors, "00000000")
    with path.open("wb") as file:
        file.write(header(checksums))
        for name, tensor in tensors.items():
            array = np.asarray(tensor.read(), order="C")
            if array.shape != tensor.shape or array.dtype != tensor.dtype:
                raise ValueError(f"{name}, announced as {tensor.dtype}{tensor.shape}, is {array.dtype}{array.shape}")
            view = memoryview(array.reshape(-1).view(np.uint8))
            checksums[name] = f"{zlib.crc32(view):08x}"
            file.write(view)
        file.seek(0)
        file.write(header(checksums))
