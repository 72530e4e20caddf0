"""Counts what a compiled step does, from its HLO text: matmul FLOPs, HBM traffic, bytes between chips.

XLA's own cost analysis counts the body of a loop once. Here it counts as often as the loop runs. Conventions:
  FLOPs        2 per multiply-add of every matrix multiplication; elementwise operations are not counted
  HBM          what each instruction reads and writes outside a chip's fast memory: operands and results of a fusion,
               and of a slice only the part that is touched
  collectives  what a chip sends if every collective runs as a ring of n: (n-1)/n of the gathered, scattered or
               exchanged array, twice that for an all-reduce, all of it for a permutation
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np

from glm_jax.planning.hlo_parser import Instruction, called_computations, parse, replica_groups

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
BETWEEN_SLICES = "between-slices"  # what a chip sends over the data-centre network, after the sum within its slice
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
         "iota", "opt-barrier", "copy-done", "slice-done"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective that runs `times` a step; bytes are what one chip sends each time."""

    kind: str
    bytes: float
    payload: float  # of the whole array
    groups: tuple[tuple[int, ...], ...]  # partition numbers; one group stands for all when they are alike
    times: float
    shapes: tuple[tuple[int, ...], ...]  # of the whole arrays, as this chip ends up with them


@dataclasses.dataclass
class Counts:
    """What one chip does in one step."""

    flops: float = 0.0
    hbm_bytes: float = 0.0
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    unknown_loops: list[str] = dataclasses.field(default_factory=list)  # without a trip count

    def by_kind(self) -> dict[str, float]:
        """Bytes sent, by kind of collective."""
        total: dict[str, float] = collections.defaultdict(float)
        for collective in self.collectives:
            total[collective.kind] += collective.bytes * collective.times
        return dict(sorted(total.items()))


def count(text: str, partitions: int, unknown_trips: float = 1) -> Counts:
    """Counts the HLO module `text`, compiled for `partitions` devices.

    A loop that does not say how often it runs counts `unknown_trips` times.
    """
    return _Module(text, partitions, unknown_trips).counts()


class _Module:
    def __init__(self, text, partitions, unknown_trips):
        self.computations, self.entry = parse(text)
        self.partitions, self.unknown_trips = partitions, unknown_trips
        self.result = Counts()

    def counts(self) -> Counts:
        self._walk(self.entry, 1.0)
        return self.result

    def _walk(self, name, times):
        """Counts a computation whose instructions each run as a kernel."""
        body = self.computations[name]
        for instruction in body.values():
            opcode, attributes = instruction.opcode, instruction.attributes
            if opcode == "while":
                trips = self._trips(body, instruction)
                for called in called_computations(attributes, "body"):
                    self._walk(called, times * trips)
            elif opcode in ("conditional", "call"):
                for called in called_computations(
                    attributes, "branch_computations", "true_computation", "false_computation", "to_apply"
                ):
                    self._walk(called, times)
            elif opcode not in _FREE:
                self.result.hbm_bytes += times * self._traffic(body, instruction)
                self._inside(body, instruction, times)

    def _inside(self, body, instruction, times):
        """Counts matmuls and collectives of an instruction and of the instructions fused into it."""
        kind = _collective_kind(instruction)
        if kind:
            self._collective(kind, body, instruction, times)
        if instruction.opcode in ("convolution", "dot"):
            self.result.flops += times * _matmul_flops(body, instruction)
        if instruction.opcode == "custom-call":
            estimate = re.search(r'"flops":"?(\d+)', instruction.attributes)
            self.result.flops += times * float(estimate[1]) if estimate else 0
        if instruction.opcode == "send" and "xla_megascale" in instruction.attributes:
            sent = instruction.result[0]
            self.result.collectives.append(
                Collective(BETWEEN_SLICES, sent.bytes, sent.bytes, ((0,),), times, (sent.dims,))
            )
        if instruction.opcode in ("async-done", "async-update"):
            return
        for called in called_computations(instruction.attributes, "calls"):
            # An asynchronous gather appears in the fusions that start, overlap and end it. Only the first counts.
            repeated = instruction.name.startswith("async-collective-done") or called.startswith(
                "async_collective_fusion"
            )
            inner = self.computations[called]
            for part in inner.values():
                if not (repeated and _collective_kind(part)):
                    self._inside(inner, part, times)

    def _collective(self, kind, body, instruction, times):
        groups = replica_groups(instruction.attributes, self.partitions)
        members = len(groups[0])
        if members < 2:
            return
        results = instruction.result
        if instruction.opcode.endswith("-start"):  # operands come first, then results
            results = results[len(results) // 2 :]
        payload = sum(array.bytes for array in results)
        if kind == "reduce-scatter":
            payload *= members if instruction.opcode.startswith("reduce-scatter") else 1
        share = (members - 1) / members
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)
        if kind == "all-reduce" and _is_reduce_scatter(body, instruction):
            kind, factor = "reduce-scatter", share
        self.result.collectives.append(
            Collective(
                kind=kind,
                bytes=payload * factor,
                payload=payload,
                groups=groups,
                times=times,
                shapes=tuple(array.dims for array in results),
            )
        )

    def _trips(self, body, loop):
        """How often a loop of `for i = start; i < stop; i += 1` runs."""
        known = re.search(r"known_trip_count[^\d]*(\d+)", loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations[called_computations(loop.attributes, "condition")[0]]
        root = next(i for i in condition.values() if i.root)
        compared = [condition.get(name) for name in root.operands]
        if root.opcode == "compare" and "direction=LT" in root.attributes and len(compared) == 2:
            index, stop = compared
            if index.opcode == "get-tuple-element" and stop.opcode == "constant":
                position = int(re.search(r"index=(\d+)", index.attributes)[1])
                carried = body[loop.operands[0]]
                start = body[carried.operands[position]] if carried.opcode == "tuple" else carried
                begin = int(start.operands[0]) if start.opcode == "constant" else 0
                return max(int(stop.operands[0]) - begin, 0)
        self.result.unknown_loops.append(loop.name)
        return self.unknown_trips

    def _traffic(self, body, instruction):
        """Bytes that one instruction reads from and writes to HBM."""
        opcode = instruction.opcode
        if opcode.endswith("-done"):
            return 0.0
        operands = [body[name] for name in instruction.operands if name in body]
        results = instruction.result
        if opcode == "slice-start":  # ((operand), slice, context): part of an array on its way to fast memory
            results = results[1:2]
        elif opcode.endswith("-start"):
            results = results[: max(1, len(results) // 2)]
        written = [array.bytes if array.in_hbm else 0.0 for array in results]
        read = [sum(array.bytes for array in operand.result if array.in_hbm) for operand in operands]
        if opcode in ("dynamic-slice", "slice", "slice-start", "gather"):
            read[0] = min(read[0], sum(array.bytes for array in results)) if read else 0
        elif opcode == "dynamic-update-slice":
            touched = read[1]
            return 2 * touched + sum(read[2:])
        elif opcode == "fusion":
            read, written = self._fused(called_computations(instruction.attributes, "calls")[0], read, written)
        return sum(read) + sum(written)

    def _fused(self, name, read, written):
        """Counts only the slices of operands that are sliced, and only the update of a result updated in place."""
        called = self.computations[name]
        reads = [min(size, self._touched(called, number)) for number, size in enumerate(read)]
        root = next(part for part in called.values() if part.root)
        roots = [called[name] for name in root.operands] if root.opcode == "tuple" else [root]
        if len(roots) == len(written):
            written = [min(size, self._updated(called, part)) for size, part in zip(written, roots, strict=True)]
        return reads, written

    def _touched(self, called, number):
        """Bytes that a fusion reads of its operand `number`; infinite when that is all of it."""
        source = next(p for p in called.values() if p.opcode == "parameter" and int(p.operands[0]) == number)
        total, waiting = 0.0, [source]
        while waiting:
            part = waiting.pop()
            for user in (u for u in called.values() if part.name in u.operands):
                first = user.operands[0] == part.name
                if user.opcode in ("bitcast", "reshape", "convert", "copy", "transpose"):
                    waiting.append(user)
                elif user.opcode == "fusion":
                    inner = self.computations[called_computations(user.attributes, "calls")[0]]
                    total += sum(self._touched(inner, n) for n, name in enumerate(user.operands) if name == part.name)
                elif first and user.opcode in ("dynamic-slice", "slice", "gather"):
                    total += sum(array.bytes for array in user.result)
                elif not (first and user.opcode == "dynamic-update-slice"):
                    return math.inf
        return total

    def _updated(self, called, part):
        """Bytes that a fusion writes of a result; infinite when that is all of it."""
        while part.opcode in ("bitcast", "convert", "copy", "reshape") and part.operands[0] in called:
            part = called[part.operands[0]]
        if part.opcode == "dynamic-update-slice":
            return sum(array.bytes for array in called[part.operands[1]].result)
        if part.opcode == "fusion":
            inner = self.computations[called_computations(part.attributes, "calls")[0]]
            root = next(p for p in inner.values() if p.root)
            return math.inf if root.opcode == "tuple" else self._updated(inner, root)
        return math.inf


def _collective_kind(instruction):
    name = instruction.opcode.removesuffix("-start")
    return name if name in _KINDS and not instruction.opcode.endswith("-done") else None


def _is_reduce_scatter(body, instruction):
    """Whether each partition uses only its part of an all-reduce: XLA's fused reduce-scatter on TPU."""
    users = [i for i in body.values() if instruction.name in i.operands]
    return bool(users) and all(user.opcode == "dynamic-slice" for user in users)


def _matmul_flops(body: dict[str, Instruction], instruction: Instruction) -> float:
    """2 · multiply-adds of a dot, or of a convolution, which matrix multiplications become on TPU."""
    shapes = [body[name].result[0].dims for name in instruction.operands]
    output, attributes = instruction.result[0].dims, instruction.attributes
    if instruction.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", attributes)[1]
        return 2.0 * math.prod(output) * math.prod(shapes[0][int(d)] for d in contracted.split(",") if d)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    lhs, rhs, out = labels[1], labels[2], labels[3]
    window = dict(re.findall(r"(\w+)=([\w\-]+)", (re.search(r"window=\{([^}]*)\}", attributes) or ["", ""])[1]))
    spatial = [c for c in out if c.isdigit()]
    total = 2.0 * output[out.index("b")] * output[out.index("f")] * shapes[1][rhs.index("i")]
    groups = re.search(r"batch_group_count=(\d+)", attributes)
    for axis in sorted(spatial, key=int):
        get = _window(window, int(axis))
        total *= _valid_pairs(shapes[0][lhs.index(axis)], shapes[1][rhs.index(axis)], output[out.index(axis)], get)
    return total / (int(groups[1]) if groups else 1)


def _window(window: dict[str, str], axis: int) -> Callable[[str, int], int]:
    def get(name, default):
        if name not in window:
            return default
        part = window[name].split("x")[axis]
        return int(part.split("_")[0])

    return get


def _valid_pairs(size: int, kernel: int, output: int, window: Callable[[str, int], int]) -> int:
    """Pairs of output and kernel positions along one dimension that read an input, not padding or a hole."""
    stride, low = window("stride", 1), window("pad", 0)
    holes, steps = window("lhs_dilate", 1), window("rhs_dilate", 1)
    at = np.arange(output)[:, None] * stride + np.arange(kernel)[None] * steps - low
    return int(((at >= 0) & (at <= (size - 1) * holes) & (at % holes == 0)).sum())
