"""What decoding needs on a TPU topology: the decoder's programs, compiled without the hardware.

One batch of prompts with one blank each is read (`encode`), then written greedily for `new_tokens` steps, as
`glm_jax.generate` does it. Matrices are held in the compute dtype. What the bound leaves out: as in `estimate`.
"""

import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from glm_jax import config as config_lib
from glm_jax.data.synthetic import SPECIAL
from glm_jax.decoding import decoder, steps
from glm_jax.decoding.options import SamplingParams
from glm_jax.distributed import sharding
from glm_jax.distributed.mesh import inference_mesh, make_mesh
from glm_jax.interop.placement import abstract_params
from glm_jax.model.config import GLMConfig, check_lengths
from glm_jax.model.transformer import GLM, parameter_count
from glm_jax.planning import estimate, hlo, topologies


def plan(
    config: ConfigDict, topology: str, slices: int = 1, *, prompts: int = 16, context: int = 512, new_tokens: int = 128
) -> dict[str, Any]:
    """The plan of generating `new_tokens` for each of `prompts` prompts of `context` tokens, ready for JSON.

    Per chip, and per token of every prompt ("step") unless a name says otherwise. Prompts and their length are rounded
    up as the decoder does. `config.mesh` says where parameters lie; without sizes they lie as an opened model's.

    Raises ValueError for what cannot be, PlanningError without a fitting libtpu.
    """
    for name, value in {"prompts": prompts, "context": context, "new_tokens": new_tokens}.items():
        if value < 1:
            raise ValueError(f"{name} = {value}: give at least 1")
    chip, devices = topologies.devices(topology, slices)
    model = config_lib.model_config(config.model, estimate.vocabulary_size(config))
    check_lengths(model, context - 1, new_tokens)
    if shape := {axis: size for axis, size in config.mesh.items() if size is not None}:
        mesh = make_mesh(shape, devices)
    else:
        mesh = inference_mesh(model.num_heads, model.vocab_size, devices)
    rows, width = decoder.rows_of(prompts, mesh), decoder.bucket(context)
    params = _prepared(model, mesh)
    result = {
        "topology": topology if slices == 1 else f"{slices} x {topology}",
        "chips": mesh.size,
        "mesh": dict(mesh.shape),
        "prompts": rows,
        "context_length": width,
        "new_tokens": new_tokens,
        "parameters": parameter_count(model),
        "parameter_bytes": estimate.bytes_on_a_chip(params),
        "hbm_bytes": chip.hbm_bytes,
    }
    began = time.perf_counter()
    with jax.set_mesh(mesh), sharding.logical_axis_rules():
        try:
            read, write, caches = _compile(model, params, rows, width, new_tokens)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            spread = steps.cache_bytes(model, rows, 1, width, new_tokens + 1) // mesh.size
            held = result["parameter_bytes"] + spread  # at best
            needed = max(held, estimate.needed_bytes(str(error), held, chip.hbm_bytes))
            seconds = time.perf_counter() - began
            memory = estimate.does_not_fit(held, needed, chip)
            return result | {"cache_bytes": spread, **memory, "compile_seconds": seconds}
    seconds = time.perf_counter() - began
    peaks = [estimate.peak_bytes(program.memory_analysis()) for program in (read, write)]
    memory = write.memory_analysis()
    prefill = hlo.count(read.as_text(), mesh.size)
    counts = hlo.count(write.as_text(), mesh.size, unknown_trips=new_tokens)  # the loop stops when all have ended
    reading, writing = (estimate.roofline(counts, chip, mesh) for counts in (prefill, counts))
    whole = max(reading.values()) + max(writing.values())
    return result | {
        "cache_bytes": estimate.bytes_on_a_chip(caches),
        "fits": 1 - max(peaks) / chip.hbm_bytes >= estimate.HEADROOM,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": max(peaks),
        "headroom": 1 - max(peaks) / chip.hbm_bytes,
        "flops_per_step": counts.flops / new_tokens,
        "hbm_bytes_per_step": counts.hbm_bytes / new_tokens,
        "collectives": {kind: size / new_tokens for kind, size in counts.by_kind().items()},
        "roofline_seconds": {name: value / new_tokens for name, value in writing.items()},
        "limited_by": max(writing, key=writing.get),
        "seconds_per_step_bound": max(writing.values()) / new_tokens,
        "prefill": {
            "flops": prefill.flops,
            "hbm_bytes": prefill.hbm_bytes,
            "collectives": prefill.by_kind(),
            "roofline_seconds": reading,
            "seconds_bound": max(reading.values()),
            "peak_bytes": peaks[0],
        },
        "seconds_bound": whole,
        "tokens_per_second": rows * new_tokens / whole / mesh.size,
        "tokens_per_second_all_chips": rows * new_tokens / whole,
        "uncounted_loops": len(prefill.unknown_loops) + len(counts.unknown_loops) - 1,
        "compile_seconds": seconds,
    }


def remedies(config: ConfigDict, topology: str, slices: int = 1, enough: int = 1, **sizes: int) -> list[dict[str, Any]]:
    """Tries other meshes, then fewer prompts, until `enough` fit; `sizes` as for `plan`. Returns as `remedies` does."""
    tried, fitting = [], 0
    for mesh, prompts in _changes(config, topology, slices, sizes.pop("prompts", 16)):
        candidate = config.copy_and_resolve_references()
        with candidate.unlocked(), candidate.ignore_type():
            candidate.mesh.update(mesh)
        result = plan(candidate, topology, slices, prompts=prompts, **sizes)
        flags = " ".join(f"--config.mesh.{axis}={size}" for axis, size in mesh.items()) + f" --prompts={prompts}"
        tried.append({"change": flags, "fits": result["fits"], "peak_bytes": result["peak_bytes"]})
        fitting += result["fits"]
        if fitting == enough:
            break
    return tried


def _changes(config, topology, slices, prompts) -> Iterator[tuple[dict[str, int], int]]:
    devices = len(topologies.devices(topology, slices)[1])
    model = config_lib.model_config(config.model, estimate.vocabulary_size(config))
    tensor = math.gcd(devices // slices, model.num_heads)
    mesh = {"data": devices // tensor, "fsdp": 1, "tensor": tensor}
    while True:
        yield mesh, prompts
        if prompts == 1:
            return
        prompts //= 2


def _prepared(model: GLMConfig, mesh):
    params = abstract_params(model, mesh, sharding.RULES, "float32")
    prepared = jax.eval_shape(lambda tree: steps.prepare(tree, config=model, unrolled=False), params)
    return jax.tree.map(_shaped, prepared, jax.tree.map(lambda leaf: leaf.sharding, params))


def _compile(model, params, rows, width, new_tokens):
    """The compiled `encode` and `write`, and the shapes of contexts and caches, with the shardings that they get."""
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731
    read = decoder.encode.lower(params, *[ints(rows, width)] * 3, ints(rows), ints(rows), model=GLM(model))
    context, read = _compiled(read)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (rows, 1)))
    begin = decoder.init_state.lower(context, ints(rows, 1), keys, ints(rows), ints(rows), max_new_tokens=new_tokens)
    state, _ = _compiled(begin)
    sampling_params = SamplingParams()
    values = jax.eval_shape(lambda: sampling_params.values(model.vocab_size))
    write = decoder.decode_loop.lower(
        params, context, ints(rows, 1), state, ints(), values, model=GLM(model), shape=sampling_params.shape(),
        start=SPECIAL.start, stops=tuple(sorted({SPECIAL.end, SPECIAL.eos})), max_new_tokens=new_tokens,
    ).compile()  # fmt: skip
    return read, write, (context.keys, context.values, state.cache)


def _compiled(lowered):
    compiled = lowered.compile()
    return jax.tree.map(_shaped, lowered.out_info, compiled.output_shardings), compiled


def _shaped(shape, sharding):
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
