"""Reads the HLO text of a compiled program: computations, instructions, types, and the groups of collectives."""

import dataclasses
import math
import re

import numpy as np

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{$")


@dataclasses.dataclass
class Array:
    """Shape of one array in a type."""

    dtype: str
    dims: tuple[int, ...]
    layout: str

    @property
    def bytes(self) -> float:
        """Size without padding."""
        width = _BYTES.get(self.dtype)
        if width is None:
            width = int(re.search(r"\d+", self.dtype)[0]) / 8
        return math.prod(self.dims) * width

    @property
    def in_hbm(self) -> bool:
        """Whether it is in the chip's main memory: memory space 0."""
        return "S(" not in self.layout or "S(0)" in self.layout


@dataclasses.dataclass
class Instruction:
    """One line of HLO."""

    name: str
    opcode: str
    result: list[Array]
    operands: list[str]
    attributes: str
    root: bool


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Computations by name, each a dictionary of its instructions in order; and the name of the entry."""
    computations, current, entry = {}, None, None
    for line in text.splitlines():
        if current is None:
            header = _COMPUTATION.match(line)
            if header:
                current = computations[header[1]] = {}
                entry = header[1] if line.startswith("ENTRY") else entry
        elif line.startswith("}"):
            current = None
        else:
            instruction = _instruction(line)
            if instruction:
                current[instruction.name] = instruction
    if entry is None:
        raise ValueError("this is no HLO module: it has no ENTRY computation; was it compiled by another libtpu?")
    return computations, entry


def arrays(text: str) -> list[Array]:
    """All arrays of a type, of a tuple's parts in order."""
    return [
        Array(dtype, tuple(map(int, dims.split(","))) if dims else (), layout or "")
        for dtype, dims, layout in _ARRAY.findall(text)
    ]


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    rest = line[match.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else re.match(r"\S+", rest).end()
    kind, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    operands = re.findall(r"%([\w.\-]+)", rest[opening:closing])
    if rest[:opening] in ("constant", "parameter"):
        operands = [rest[opening + 1 : closing]]
    return Instruction(
        match[1], rest[:opening], arrays(kind), operands, rest[closing + 1 :], line.lstrip().startswith("ROOT")
    )


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError(f"unbalanced HLO: {text[:80]}")


def called_computations(attributes: str, *names: str) -> list[str]:
    """The computations that an instruction names under any of `names`, such as "body" or "calls"."""
    result = []
    for name in names:
        result += re.findall(rf"\b{name}=%([\w.\-]+)", attributes)
        for listed in re.findall(rf"\b{name}=\{{([^}}]*)\}}", attributes):
            result += re.findall(r"%([\w.\-]+)", listed)
    return result


def replica_groups(attributes, partitions) -> tuple[tuple[int, ...], ...]:
    """The partition numbers of each group of a collective, from any of HLO's notations."""
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)
    if pairs:
        return tuple(tuple(map(int, p)) for p in re.findall(r"(\d+),(\d+)", pairs[1])[:1])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes)
    if named:
        axes = re.findall(r"'(\w+)'=(\d+)", named[1])
        sizes = [int(size) for _, size in axes]
        members = [i for i, (axis, _) in enumerate(axes) if axis in re.findall(r"'(\w+)'", named[2])]
        ids = np.moveaxis(np.arange(math.prod(sizes)).reshape(sizes), members, range(-len(members), 0))
        order = re.search(r"device_ids=\(\[([\d,]*)\](?:T\(([\d,]*)\))?\)", attributes)
        if order:
            dims = tuple(map(int, order[1].split(",")))
            device_ids = np.arange(math.prod(dims)).reshape(dims)
            device_ids = device_ids.transpose(tuple(map(int, order[2].split(",")))) if order[2] else device_ids
            ids = device_ids.reshape(-1)[ids]
        return _as_tuples(ids.reshape(-1, math.prod(sizes[i] for i in members)))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        shape, dims = (tuple(map(int, part.split(","))) for part in (iota[1], iota[2]))
        ids = np.arange(math.prod(dims)).reshape(dims)
        ids = ids.transpose(tuple(map(int, iota[3].split(",")))) if iota[3] else ids
        return _as_tuples(ids.reshape(shape))
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", attributes)
    if listed:
        return tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed[1]))
    return _as_tuples(np.arange(partitions)[None])


def _as_tuples(ids):
    return tuple(tuple(int(i) for i in row) for row in ids)
