"""What a config needs on a TPU topology: the real train step, compiled without the hardware.

MFU is the useful matmul FLOPs over the peak of the chips: visible query-key pairs, real positions and targets only,
forward once and backward twice (`flops.useful_flops`). Recomputation by remat and padding are in `flops_per_step` but
not in the MFU. The bound assumes that matmuls, HBM and interconnect overlap perfectly and each runs at its peak, and
ignores elementwise operations. So no run is faster, and real ones are slower.
"""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from glm_jax.corruption.corrupt import corrupt
from glm_jax.data.synthetic import SPECIAL, random_rows
from glm_jax.distributed import sharding
from glm_jax.distributed.accelerators import Accelerator
from glm_jax.model.transformer import parameter_count
from glm_jax.planning import hlo, topologies
from glm_jax.training import setup
from glm_jax.training.flops import useful_flops
from glm_jax.training.train_step import TokenRows

HEADROOM = 0.1  # share of HBM that should stay free, for fragmentation and the runtime
_SAMPLE = 64  # rows corrupted to count real positions and targets


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiled step of a config on a topology, or what the compiler said when it does not fit."""

    config: ConfigDict
    chip: Accelerator
    built: setup.TrainingSetup
    text: str | None  # HLO
    memory: Any  # jax's CompiledMemoryStats, or None
    seconds: float
    needed_bytes: float | None  # HBM that the program would need, when it does not fit


def compile_step(
    config: ConfigDict, topology: str, slices: int = 1, build: Callable[..., setup.TrainingSetup] = setup.make_setup
) -> Compiled:
    """Lowers and compiles the train step of `config` for `slices` times `topology`; `build` makes it.

    Raises ValueError for a config or topology that cannot be, PlanningError without a fitting libtpu.
    """
    chip, devices = topologies.devices(topology, slices)
    mesh, rules = setup.check(config, devices)
    schedule = setup.resolve_durations(config, rows=10**6)
    vocabulary = vocabulary_size(config)
    built = build(
        config, schedule, mesh, rules, vocab_size=vocabulary, special=SPECIAL,
        sentence_ends=np.zeros(vocabulary, bool),
    )  # fmt: skip
    return compile_setup(config, chip, built, abstract_rows(config, mesh, rules))


def compile_setup(config: ConfigDict, chip: Accelerator, built: setup.TrainingSetup, rows: Any) -> Compiled:
    """Lowers and compiles the train step of a setup for `rows`, which are shapes with shardings."""
    began = time.perf_counter()
    with built.activate():
        lowered = built.train_step.lower(built.abstract_state, rows)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            needed = needed_bytes(str(error), bytes_on_a_chip(built.abstract_state), chip.hbm_bytes)
            return Compiled(config, chip, built, None, None, time.perf_counter() - began, needed)
    seconds = time.perf_counter() - began
    return Compiled(config, chip, built, compiled.as_text(), compiled.memory_analysis(), seconds, None)


def abstract_rows(config: ConfigDict, mesh: Any, rules: sharding.Rules) -> TokenRows:
    """The rows of one step, [B L] tokens and so on, as shapes with shardings."""
    batch, length = config.batch_size, config.data.sequence_length
    where = sharding.batch_sharding(mesh, rules)
    return TokenRows(
        tokens=jax.ShapeDtypeStruct((batch, length), np.int32, sharding=where),
        lengths=jax.ShapeDtypeStruct((batch,), np.int32, sharding=where),
        index=jax.ShapeDtypeStruct((batch,), np.uint32, sharding=where),
    )


# Rows of the released vocabularies, padded.
_RELEASED = {"bert": 30592, "roberta": 50304, "gpt2": 50304, "chinese": 50048}


def vocabulary_size(config: ConfigDict) -> int:
    """V of the run, before its tokenizer exists: the model's, else the released vocabulary's, or that to be trained."""
    if config.model.vocab_size is not None:
        return config.model.vocab_size
    tokenizer = config.data.tokenizer
    if tokenizer.vocabulary is not None:
        return _RELEASED[tokenizer.vocabulary]
    return -(-tokenizer.vocab_size // tokenizer.pad_vocab_to_multiple_of) * tokenizer.pad_vocab_to_multiple_of


def plan(config: ConfigDict, topology: str, slices: int = 1) -> dict[str, Any]:
    """The plan of `config` on `slices` times `topology`, ready for JSON; per chip and step unless a name says more.

    Raises as `compile_step`.
    """
    return describe(compile_step(config, topology, slices), topology, slices)


def describe(compiled: Compiled, topology: str, slices: int = 1) -> dict[str, Any]:
    """The results for a compiled step; keys as in `plan`."""
    config, chip, built = compiled.config, compiled.chip, compiled.built
    mesh = built.mesh
    result = {
        "topology": topology if slices == 1 else f"{slices} x {topology}",
        "chips": mesh.size,
        "mesh": dict(mesh.shape),
        "remat": built.model.config.remat,
        "grad_accumulation_steps": config.grad_accumulation_steps,
        "batch_size": config.batch_size,
        "parameters": parameter_count(built.model.config),
        "hbm_bytes": chip.hbm_bytes,
        "compile_seconds": compiled.seconds,
        **memory_of(compiled),
    }
    if compiled.text is None:
        return result
    counts = hlo.count(compiled.text, mesh.size)
    useful = useful_flops_per_step(config, built)
    seconds = roofline(counts, chip, mesh)
    bound = max(seconds.values())
    tokens = config.batch_size * config.data.sequence_length
    total = built_steps(config)
    return result | {
        "flops_per_step": counts.flops,
        "useful_flops_per_step": useful / mesh.size,
        "hbm_bytes_per_step": counts.hbm_bytes,
        "collectives": counts.by_kind(),
        "roofline_seconds": seconds,
        "limited_by": max(seconds, key=seconds.get),
        "seconds_per_step_bound": bound,
        "mfu_bound": useful / mesh.size / chip.flops / bound,
        "tokens_per_second": tokens / bound / mesh.size,
        "tokens_per_second_all_chips": tokens / bound,
        "steps": total,
        "days": None if total is None else total * bound / 86400,
        "largest_replicated_parameter_bytes": largest_replicated(built),
        "gathered_activation_bytes": gathered_activations(counts, built),
        "uncounted_loops": len(counts.unknown_loops),
    }


def memory_of(compiled: Compiled) -> dict[str, Any]:
    """The memory part of a plan."""
    chip, memory = compiled.chip, compiled.memory
    if compiled.text is None:
        return does_not_fit(bytes_on_a_chip(compiled.built.abstract_state), compiled.needed_bytes, chip)
    peak = peak_bytes(memory)
    return {
        "fits": 1 - peak / chip.hbm_bytes >= HEADROOM,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": peak,
        "headroom": 1 - peak / chip.hbm_bytes,
    }


def does_not_fit(held: float, needed: float, chip: Accelerator) -> dict[str, Any]:
    """The memory part of a plan whose program needs more bytes than the chip has; its arguments hold `held` bytes."""
    return {
        "fits": False,
        "argument_bytes": held,
        "temporary_bytes": needed - held,
        "peak_bytes": needed,
        "headroom": 1 - needed / chip.hbm_bytes,
    }


def peak_bytes(memory: Any) -> int:
    """What a compiled program needs of a chip's memory, from its CompiledMemoryStats."""
    return (
        memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    )  # fmt: skip


def roofline(counts: hlo.Counts, chip: Accelerator, mesh: Any) -> dict[str, float]:
    """Least seconds for what was counted: matmuls, HBM and interconnect, each at its peak."""
    devices = list(mesh.devices.flat)
    return {
        "compute": counts.flops / chip.flops,
        "hbm": counts.hbm_bytes / chip.hbm_bandwidth,
        "interconnect": sum(c.times * interconnect_seconds(c, chip, devices) for c in counts.collectives),
    }


def built_steps(config: ConfigDict) -> int | None:
    """Steps of the run, or None if they depend on the corpus (epochs)."""
    return None if "epoch" in str(config.train_duration) else setup.resolve_durations(config, rows=10**6).total


def useful_flops_per_step(config: ConfigDict, built: setup.TrainingSetup) -> float:
    """Useful matmul FLOPs of the batch on all chips, estimated from a sample of corrupted rows."""
    length = config.data.sequence_length
    count = _SAMPLE - _SAMPLE % len(built.corruption.slots())
    tokens, ends = random_rows(count, length)
    index = np.arange(count, dtype=np.uint32)
    batch = corrupt(
        jax.random.key(0), tokens, np.full(count, length, np.int32), index, ends, config=built.corruption,
        special=SPECIAL,
    )  # fmt: skip
    return useful_flops(built.model.config, batch) * config.batch_size / count


def largest_replicated(built: setup.TrainingSetup) -> int:
    """Bytes of the largest parameter of which every device holds all; 0 when all are split."""
    sizes = [
        math.prod(leaf.shape) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(built.abstract_state.params)
        if leaf.sharding.is_fully_replicated
    ]
    return max(sizes, default=0)


def gathered_activations(counts: hlo.Counts, built: setup.TrainingSetup) -> float:
    """Bytes a step of all-gathers of anything but parameters (of one layer, or of queries, keys or values alone)."""
    sizes = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(built.abstract_state.params):
        stacked = leaf.shape[0] if getattr(path[0], "key", None) == "layers" else 1
        layer = math.prod(leaf.shape) // stacked
        for part in (layer, layer // 3, layer // 3 * 2, layer * stacked):
            sizes |= {part, part // built.mesh.shape["tensor"]}
    return sum(
        collective.bytes * collective.times
        for collective in counts.collectives
        if collective.kind == "all-gather" and any(math.prod(shape) not in sizes for shape in collective.shapes)
    )


def interconnect_seconds(collective: hlo.Collective, chip: Accelerator, devices: Sequence[Any]) -> float:
    """How long a collective's bytes take on the links that its groups can use.

    Within a slice: the dimensions of the torus in which a group extends; both directions where it goes round a ring,
    else one. Between s slices: every chip's share of the data-centre network, 2 (s-1)/s of the array each way.
    """
    devices = list(devices)
    if collective.kind == hlo.BETWEEN_SLICES:
        slices = len({device.slice_index for device in devices})
        return collective.bytes * 2 * (slices - 1) / slices / chip.interconnect.dcn_bandwidth
    positions = np.array([devices[i].coords for i in collective.groups[0]])
    everywhere = np.array([device.coords for device in devices]).max(0) + 1
    bandwidth = 0.0
    for axis, size in enumerate(everywhere):
        extent = len(np.unique(positions[:, axis]))
        if extent > 1:
            ring = extent == size and size % chip.interconnect.wraps == 0
            bandwidth += chip.interconnect.link_bandwidth * (2 if ring else 1)
    return collective.bytes / bandwidth if bandwidth else 0.0  # two cores of one chip share its memory


def needed_bytes(message: str, arguments: float, limit: float) -> float:
    """The bytes of HBM that the compiler reports it needs; `limit` when it reports none."""
    used = re.search(r"Used ([\d.]+)([KMGT]) of", message)
    temporaries = re.search(r"HLO temporaries \(([\d.]+)([KMGT])\)", message)
    if not (used or temporaries):
        return limit
    number, unit = (used or temporaries).groups()
    return float(number) * 1024.0 ** ("KMGT".index(unit) + 1) + (0 if used else arguments)


def bytes_on_a_chip(tree: Any) -> int:
    """Bytes that one chip holds of a tree of arrays or shapes with shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
