"""PyTorch's file formats (torch.save), read tensor by tensor and written, without PyTorch.

Since version 1.6 a file is an uncompressed zip: `data.pkl` describes the object, `data/N` holds storage N, and every
member has a CRC-32. Before, it was a row of pickles with the storages after them and no checksum. Both are read, the
zip is written.
"""

import dataclasses
import io
import math
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from glm_jax.interop import restricted_pickle
from glm_jax.interop.errors import FormatError
from glm_jax.interop.restricted_pickle import STORAGES, Storage, TensorView
from glm_jax.interop.tensors import DTYPES, LazyTensor

_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_CHUNK = 1 << 24
_LARGEST_PICKLE = 1 << 28


@dataclasses.dataclass
class _Region:
    """Where a storage is in the file."""

    start: int
    size: int
    crc: int | None
    verified: bool = False


def read(path: pathlib.Path) -> Any:
    """The object in a file of torch.save: containers of plain values, with a `LazyTensor` for every tensor.

    Only the description is read; each tensor's `read` opens the file again. Objects of unknown classes are
    `restricted_pickle.Inert`. Raises FormatError or UnsafeFileError.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
            file.seek(0)
            if start == b"PK\x03\x04":
                value, locate, swap = _open_zip(path)
            elif start[:1] == b"\x80":
                value, locate, swap = _open_legacy(file, path)
            else:
                what = "is empty" if not start else f"begins with {start!r}"
                raise FormatError(
                    f"{path} {what}: no file of torch.save; fetch it again (Git LFS leaves such pointers)"
                )
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error}") from error
    return _with_tensors(value, path, locate, swap)


def _open_zip(path):
    regions: dict[str, _Region] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            if "data.pkl" not in members:
                raise FormatError(f"{path} is a zip file, but not one of torch.save: data.pkl is missing")
            for info in members.values():
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                    raise FormatError(f"{path}: {info.filename} is compressed, which torch.save never does")
            if members["data.pkl"].file_size > _LARGEST_PICKLE:
                raise FormatError(f"{path}: data.pkl is larger than any description of tensors")
            pickle = archive.read(members["data.pkl"])  # verifies its CRC-32
            order = archive.read(members["byteorder"]) if "byteorder" in members else b"little"
            size = path.stat().st_size
            with path.open("rb") as file:
                for name, info in members.items():
                    if name.startswith("data/"):
                        regions[name[5:]] = _region(file, info, path, size)
    except FormatError:
        raise
    except Exception as error:  # zipfile raises many types for damaged archives, NotImplementedError among them
        raise FormatError(f"{path} is a damaged or truncated zip file ({error}); fetch it again") from error
    if order not in (b"little", b"big"):
        raise FormatError(f"{path}: unknown byte order {order[:20]!r}")

    def locate(storage: Storage) -> _Region:
        if storage.key not in regions:
            raise FormatError(f"{path}: the storage data/{storage.key[:20]} of a tensor is missing")
        region = regions[storage.key]
        if region.size != storage.size * storage.dtype.itemsize:
            raise FormatError(
                f"{path}: data/{storage.key} has {region.size} bytes, its tensor needs {storage.size} x {storage.dtype}"
            )
        return region

    return restricted_pickle.loads(pickle, str(path)), locate, order == b"big"


def _region(file, info, path, file_size):
    """The bytes of an uncompressed member, which follow its local header."""
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise FormatError(f"{path}: the header of {info.filename} is damaged")
    name, extra = struct.unpack("<HH", header[26:30])
    start = info.header_offset + 30 + name + extra
    if start + info.file_size > file_size:
        raise FormatError(f"{path} breaks off inside {info.filename}; fetch it again")
    return _Region(start, info.file_size, info.CRC)


def _open_legacy(file, path):
    def pickle():
        return restricted_pickle.load(file, str(path))

    if pickle() != _LEGACY_MAGIC or pickle() != _LEGACY_PROTOCOL:
        raise FormatError(f"{path} is a pickle, but not one of torch.save")
    system = pickle()
    if not isinstance(system, dict):
        raise FormatError(f"{path}: its description of the machine is damaged")
    value, keys = pickle(), pickle()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise FormatError(f"{path}: its list of storages is damaged")
    storages = {view.storage.key: view.storage for view in _views(value, path)}
    size, regions = path.stat().st_size, {}
    for key in keys:
        storage = storages.get(key)
        count = file.read(8)
        if storage is None or len(count) < 8 or struct.unpack("<q", count)[0] != storage.size:
            raise FormatError(f"{path}: the size of storage {key[:20]!r} is damaged or belongs to no tensor")
        regions[key] = _Region(file.tell(), storage.size * storage.dtype.itemsize, None)
        file.seek(regions[key].size, io.SEEK_CUR)
        if file.tell() > size:
            raise FormatError(f"{path} breaks off inside storage {key[:20]!r}; fetch it again")
    if file.tell() != size:
        raise FormatError(f"{path} has {size - file.tell()} bytes after its last tensor; fetch it again")

    def locate(storage: Storage) -> _Region:
        if storage.key not in regions:
            raise FormatError(f"{path}: the storage {storage.key[:20]!r} of a tensor is missing")
        return regions[storage.key]

    return value, locate, system.get("little_endian") is False


def _views(value, path):
    """Every tensor in `value`, however deep, without recursion."""
    pending, visited = [value], set()
    while pending:
        item = pending.pop()
        if isinstance(item, TensorView):
            yield item
        elif isinstance(item, (dict, list, tuple)) and id(item) not in visited:
            visited.add(id(item))
            pending.extend(item.values() if isinstance(item, dict) else item)


def _with_tensors(value, path, locate, swap, depth=0):
    """`value` with LazyTensors for tensors, in dictionaries at most four deep; the state dict is no deeper."""
    if isinstance(value, TensorView):
        return _lazy(value, path, locate, swap)
    if isinstance(value, dict) and depth < 4:
        return {key: _with_tensors(item, path, locate, swap, depth + 1) for key, item in value.items()}
    return value


def _lazy(view, path, locate, swap):
    storage = view.storage
    region = locate(storage)
    extent = 1 + sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True))
    count = math.prod(view.shape)
    if count and (view.offset + extent > storage.size or count > extent):
        raise FormatError(
            f"{path}: a tensor of shape {view.shape} reaches outside its storage of {storage.size} or repeats parts"
        )

    def load() -> np.ndarray:
        if not count:
            return np.empty(view.shape, storage.dtype)
        array = _read_elements(path, region, storage.dtype, view.offset, extent)
        if swap:
            array = array.byteswap()
        strides = [stride * storage.dtype.itemsize for stride in view.strides]
        return np.asarray(np.lib.stride_tricks.as_strided(array, view.shape, strides, writeable=False), order="C")

    return LazyTensor(view.shape, storage.dtype, load, str(path), region.crc is not None)


def _read_elements(path, region, dtype, offset, count):
    """Elements [offset, offset + count) of a storage; verifies the CRC of the whole storage the first time."""
    array = np.empty(count, dtype)
    start, whole = region.start + offset * dtype.itemsize, array.nbytes == region.size
    try:
        with path.open("rb") as file:
            if region.crc is not None and not region.verified and not whole:
                file.seek(region.start)
                _check_crc(path, region, _chunks_crc(file, region.size))
            file.seek(start)
            view = memoryview(array.view(np.uint8))
            crc = 0
            for begin in range(0, len(view), _CHUNK):
                part = view[begin : begin + _CHUNK]
                if file.readinto(part) != len(part):
                    raise FormatError(f"{path} breaks off: {begin} of {len(view)} bytes of a tensor; fetch it again")
                crc = zlib.crc32(part, crc)
            if region.crc is not None and whole:
                _check_crc(path, region, crc)
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error}") from error
    return array


def _chunks_crc(file, size):
    crc = 0
    for begin in range(0, size, _CHUNK):
        crc = zlib.crc32(file.read(min(_CHUNK, size - begin)), crc)
    return crc


def _check_crc(path, region, crc):
    if crc != region.crc:
        raise FormatError(
            f"{path}: a tensor's checksum is {crc:08x}, but {region.crc:08x} was saved; fetch the file again"
        )
    region.verified = True


# ---------------------------------------------------------------------- writing


def write(path: pathlib.Path, value: Any) -> None:
    """Writes what torch.load reads: dictionaries, lists, plain values and `LazyTensor`s, these read one at a time.

    Raises ValueError for a value of another type.
    """
    description = io.BytesIO()
    tensors: list[LazyTensor] = []
    description.write(b"\x80\x02")
    _write_value(description.write, value, tensors)
    description.write(b".")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _add(archive, f"{path.stem}/data.pkl", len(description.getvalue()), lambda out: out(description.getvalue()))
        _add(archive, f"{path.stem}/byteorder", 6, lambda out: out(b"little"))
        for i, tensor in enumerate(tensors):
            _add(archive, f"{path.stem}/data/{i}", tensor.nbytes, lambda out, tensor=tensor: out(_bytes(tensor)))
        _add(archive, f"{path.stem}/version", 2, lambda out: out(b"3\n"))


def _bytes(tensor):
    array = np.asarray(tensor.read(), order="C")
    if array.shape != tensor.shape or array.dtype != tensor.dtype:
        raise ValueError(f"a tensor announced as {tensor.dtype}{tensor.shape} is {array.dtype}{array.shape}")
    return memoryview(array.reshape(-1).view(np.uint8))


def _add(archive: zipfile.ZipFile, name: str, size: int, fill: Callable) -> None:
    """A member whose bytes begin at a multiple of 64, as torch.save aligns them, so that they can be memory-mapped."""
    info = zipfile.ZipInfo(name)
    large = size >= zipfile.ZIP64_LIMIT
    begin = archive.start_dir + 30 + len(name.encode()) + (20 if large else 0) + 4
    info.extra = b"FB" + struct.pack("<H", -begin % 64) + b"Z" * (-begin % 64)
    info.file_size = size
    with archive.open(info, "w", force_zip64=large) as member:
        fill(member.write)


def _write_value(out, value, tensors):
    match value:
        case LazyTensor():
            _write_tensor(out, value, len(tensors))
            tensors.append(value)
        case dict():
            out(b"}(")
            for key, item in value.items():
                _write_value(out, key, tensors)
                _write_value(out, item, tensors)
            out(b"u")
        case list():
            out(b"](")
            for item in value:
                _write_value(out, item, tensors)
            out(b"e")
        case None:
            out(b"N")
        case bool():
            out(b"\x88" if value else b"\x89")
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            out(b"\x8a" + bytes([len(data)]) + data)
        case float():
            out(b"G" + struct.pack(">d", value))
        case str():
            data = value.encode()
            out(b"X" + struct.pack("<I", len(data)) + data)
        case _:
            raise ValueError(f"a {type(value).__name__} cannot be written to a PyTorch checkpoint")


def _write_tensor(out, tensor, key):
    """A call of torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)."""

    def write(value):
        _write_value(out, value, [])

    def numbers(values):
        out(b"(")
        for value in values:
            write(value)
        out(b"t")

    names = {DTYPES[dtype]: name for name, dtype in STORAGES.items()}
    if tensor.dtype not in names:
        raise ValueError(f"tensors of {tensor.dtype} have no PyTorch storage; known: {', '.join(STORAGES.values())}")
    out(b"ctorch._utils\n_rebuild_tensor_v2\n((")
    write("storage")
    out(f"ctorch\n{names[tensor.dtype]}\n".encode())
    write(str(key))
    write("cpu")
    write(math.prod(tensor.shape))
    out(b"tQ")
    write(0)
    numbers(tensor.shape)
    numbers([math.prod(tensor.shape[i + 1 :]) for i in range(len(tensor.shape))])
    out(b"\x89ccollections\nOrderedDict\n)RtR")
