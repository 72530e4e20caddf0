"""Reads the pickles in PyTorch checkpoints without being able to run anything.

A pickle is a program for a small stack machine; Python's own machine imports and calls whatever the program names.
This one knows plain containers and descriptions of tensors. Names from libraries that training scripts leave in their
checkpoints (optimizer classes, NumPy random states) become inert placeholders, never imported; others are refused.
"""

import dataclasses
import io
import struct
from typing import Any

import numpy as np

from glm_jax.interop.errors import FormatError, UnsafeFileError
from glm_jax.interop.tensors import DTYPES

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
# Libraries whose objects are beside the weights in real checkpoints.
_INERT_MODULES = ("torch", "numpy", "argparse", "deepspeed", "apex", "fp16", "mpu", "megatron", "learning_rates")
_INERT_NAMES = {
    *((module, name) for module in ("collections",) for name in ("defaultdict", "deque", "Counter")),
    *((module, name) for module in ("copyreg", "copy_reg") for name in ("_reconstructor",)),
    *(
        (module, name)
        for module in ("builtins", "__builtin__")
        for name in ("object", "set", "frozenset", "list", "dict", "tuple", "bytearray", "bytes", "int", "float",
                     "complex", "bool", "str", "slice", "range")
    ),
    ("_codecs", "encode"),
}  # fmt: skip
_MAX_STRING_BYTES = 1 << 26  # bytes of one string; weights are never stored in the pickle itself
_MAX_STEPS = 1 << 24


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of `size` elements outside the pickle under `key`."""

    dtype: np.dtype
    key: str
    size: int


@dataclasses.dataclass(frozen=True)
class TensorView:
    """A tensor: a view into a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Inert:
    """Stands for an object of a class that is not loaded."""

    name: str


@dataclasses.dataclass(frozen=True)
class _StorageType:
    dtype: np.dtype


class _Mark:
    pass


_MARK = _Mark()


def loads(data: bytes, file: str) -> Any:
    """The value of one pickle. Raises FormatError (damaged) or UnsafeFileError (names what is refused)."""
    return load(io.BytesIO(data), file)


def load(stream: io.BufferedIOBase, file: str) -> Any:
    """The value of the pickle that starts at `stream`'s position, which is left after its end."""
    try:
        return _Machine(stream, file).run()
    except FormatError:
        raise
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error, EOFError) as error:
        raise FormatError(f"{file}: its pickle is damaged ({type(error).__name__}: {error})") from error


class _Machine:
    def __init__(self, stream, file):
        self._stream, self._file = stream, file
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self):
        for _ in range(_MAX_STEPS):
            code = self._read(1)
            if code == b".":
                if len(self._stack) != 1:
                    raise FormatError(f"{self._file}: its pickle ends with {len(self._stack)} values instead of one")
                return self._pop()
            if code not in _OPERATIONS:
                raise FormatError(f"{self._file}: pickle operation {code!r} is not one that checkpoints use")
            _OPERATIONS[code](self)
        raise FormatError(f"{self._file}: its pickle has more than {_MAX_STEPS} operations")

    # ------------------------------------------------------------------ reading
    def _read(self, count):
        if not 0 <= count <= _MAX_STRING_BYTES:
            raise FormatError(f"{self._file}: a string of {count} bytes in its pickle; the file is damaged")
        data = self._stream.read(count)
        if len(data) != count:
            raise FormatError(f"{self._file}: its pickle breaks off; the file is truncated")
        return data

    def _number(self, form):
        return struct.unpack("<" + form, self._read(struct.calcsize("<" + form)))[0]

    def _line(self):
        line = self._stream.readline(1000)
        if not line.endswith(b"\n"):
            raise FormatError(f"{self._file}: a line of its pickle does not end; the file is damaged")
        return line[:-1].decode("utf-8")

    def _push(self, value):
        self._stack.append(value)

    def _pop(self):
        value = self._stack.pop()
        if value is _MARK:
            raise FormatError(f"{self._file}: its pickle is damaged (a mark where a value belongs)")
        return value

    def _to_mark(self):
        values = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _tuple(self, count):
        self._push(tuple([self._pop() for _ in range(count)][::-1]))

    def _text(self, form):
        self._push(self._read(self._number(form)).decode("utf-8", "surrogatepass"))

    def _string(self, form):
        self._push(self._read(self._number(form)).decode("latin-1"))

    def _bytes(self, form):
        self._push(self._read(self._number(form)))

    def _long(self, form):
        self._push(int.from_bytes(self._read(self._number(form)), "little", signed=True))

    def _put(self, index):
        self._memo[index] = self._stack[-1]

    def _get(self, index):
        self._push(self._memo[index])

    # ------------------------------------------------------------------ containers
    def _append(self, values):
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Inert):
            raise FormatError(f"{self._file}: its pickle appends to a {type(target).__name__}")

    def _set(self, items):
        target = self._stack[-1]
        if isinstance(target, Inert):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise FormatError(f"{self._file}: its pickle sets items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._set_item(target, key, value)

    def _set_item(self, target, key, value):
        # Only flat keys: hashing a tuple nested a million deep would overflow the C stack.
        if not isinstance(key, (str, int, float, bytes, type(None))):
            raise FormatError(f"{self._file}: a {type(key).__name__} as key of a dictionary in its pickle")
        if key in target:
            raise FormatError(f"{self._file}: the key {str(key)[:100]!r} occurs twice in one dictionary of its pickle")
        target[key] = value

    # ------------------------------------------------------------------ names and what is made of them
    def _name(self, module, name):
        if not isinstance(module, str) or not isinstance(name, str):
            raise FormatError(f"{self._file}: its pickle is damaged (a name that is no text)")
        if module == "torch" and name in STORAGES:
            return self._push(_StorageType(DTYPES[STORAGES[name]]))
        if (module, name) in _BUILDERS:
            return self._push(_BUILDERS[module, name])
        if module.split(".")[0] in _INERT_MODULES or (module, name) in _INERT_NAMES:
            return self._push(Inert(f"{module}.{name}"))
        raise UnsafeFileError(
            f"{self._file} asks for {module}.{name}, which no checkpoint needs: it may try to run code when loaded. "
            "Nothing was run; do not load this file with other tools, and get the checkpoint from its publisher"
        )

    def _reduce(self):
        arguments, function = self._pop(), self._pop()
        if not isinstance(arguments, tuple):
            raise FormatError(f"{self._file}: its pickle is damaged (arguments that are no tuple)")
        if isinstance(function, Inert):
            self._push(function)
        elif isinstance(function, _Builder):
            self._push(function.build(self, *arguments))
        else:
            raise FormatError(f"{self._file}: its pickle calls a {type(function).__name__}")

    def _build(self):
        self._pop()  # the state: attributes of an inert object, or the metadata of a state dict
        if not isinstance(self._stack[-1], (Inert, dict, TensorView)):
            raise FormatError(f"{self._file}: its pickle sets attributes of a {type(self._stack[-1]).__name__}")

    def _persistent(self):
        match self._pop():
            case ("storage", _StorageType(dtype=dtype), str(key), str(), int(size)) if size >= 0:
                self._push(Storage(dtype, key, size))
            case ("storage", _StorageType(dtype=dtype), str(key), str(), int(size), None) if size >= 0:  # legacy format
                self._push(Storage(dtype, key, size))
            case _:
                raise FormatError(f"{self._file}: its pickle refers to something outside it that is no tensor storage")

    def _tensor(self, storage, offset, shape, strides, *_):
        numbers = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= 8
        if not isinstance(storage, Storage) or not numbers:
            raise FormatError(f"{self._file}: a tensor in its pickle is damaged")
        if not all(type(n) is int and 0 <= n < 1 << 62 for n in (offset, *shape, *strides)):
            raise FormatError(f"{self._file}: a tensor in its pickle has sizes that are no whole numbers")
        return TensorView(storage, offset, shape, strides)

    def _ordered_dict(self, pairs=()):
        result: dict = {}
        for pair in pairs:
            key, value = pair
            self._set_item(result, key, value)
        return result

    def _parameter(self, tensor, *_):
        return tensor


@dataclasses.dataclass(frozen=True)
class _Builder:
    build: Any


_BUILDERS = {
    ("torch._utils", "_rebuild_tensor"): _Builder(_Machine._tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Builder(_Machine._tensor),
    ("torch._utils", "_rebuild_parameter"): _Builder(_Machine._parameter),
    ("collections", "OrderedDict"): _Builder(_Machine._ordered_dict),
}

_OPERATIONS = {
    b"\x80": lambda m: m._read(1),  # PROTO
    b"\x95": lambda m: m._read(8),  # FRAME
    b"(": lambda m: m._push(_MARK),
    b"0": lambda m: m._stack.pop(),
    b"1": lambda m: m._to_mark(),
    b"2": lambda m: m._push(m._stack[-1]),
    b"N": lambda m: m._push(None),
    b"\x88": lambda m: m._push(True),
    b"\x89": lambda m: m._push(False),
    b"J": lambda m: m._push(m._number("i")),
    b"K": lambda m: m._push(m._number("B")),
    b"M": lambda m: m._push(m._number("H")),
    b"G": lambda m: m._push(struct.unpack(">d", m._read(8))[0]),
    b"\x8a": lambda m: m._long("B"),
    b"\x8b": lambda m: m._long("i"),
    b"X": lambda m: m._text("I"),
    b"\x8c": lambda m: m._text("B"),
    b"T": lambda m: m._string("i"),
    b"U": lambda m: m._string("B"),
    b"B": lambda m: m._bytes("I"),
    b"C": lambda m: m._bytes("B"),
    b")": lambda m: m._push(()),
    b"t": lambda m: m._push(tuple(m._to_mark())),
    b"\x85": lambda m: m._tuple(1),
    b"\x86": lambda m: m._tuple(2),
    b"\x87": lambda m: m._tuple(3),
    b"]": lambda m: m._push([]),
    b"l": lambda m: m._push(m._to_mark()),
    b"a": lambda m: m._append([m._pop()]),
    b"e": lambda m: m._append(m._to_mark()),
    b"}": lambda m: m._push({}),
    b"s": lambda m: m._set([m._pop(), m._pop()][::-1]),
    b"u": lambda m: m._set(m._to_mark()),
    b"q": lambda m: m._put(m._number("B")),
    b"r": lambda m: m._put(m._number("I")),
    b"\x94": lambda m: m._put(len(m._memo)),
    b"h": lambda m: m._get(m._number("B")),
    b"j": lambda m: m._get(m._number("I")),
    b"c": lambda m: m._name(m._line(), m._line()),
    b"\x93": lambda m: m._name(*[m._pop(), m._pop()][::-1]),
    b"R": lambda m: m._reduce(),
    b"\x81": lambda m: m._reduce(),  # NEWOBJ: nothing here tells a class from a function
    b"b": lambda m: m._build(),
    b"Q": lambda m: m._persistent(),
}
