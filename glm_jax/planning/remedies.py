"""Changes that make a config fit, tried by compiling them."""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from glm_jax.planning import topologies
from glm_jax.planning.estimate import compile_step, describe


def remedies(config: ConfigDict, topology: str, slices: int = 1, enough: int = 2) -> list[dict[str, Any]]:
    """Tries one change after another, cheapest for the run first, until `enough` fit.

    Returns what was tried, in order: the change as flags, whether it fits, and the peak memory of a chip in bytes.
    Raises as `estimate.plan`.
    """
    tried, fitting = [], 0
    for change in changes(config, topology, slices):
        candidate = config.copy_and_resolve_references()
        with candidate.unlocked(), candidate.ignore_type():
            candidate.update_from_flattened_dict(change)
        try:
            result = describe(compile_step(candidate, topology, slices), topology, slices)
        except ValueError:  # a mesh that divides neither batch nor width
            continue
        flags = " ".join(f"--config.{key}={value}" for key, value in change.items())
        tried.append({"change": flags, "fits": result["fits"], "peak_bytes": result["peak_bytes"]})
        fitting += result["fits"]
        if fitting == enough:
            break
    return tried


def changes(config: ConfigDict, topology: str, slices: int = 1) -> Iterator[dict[str, Any]]:
    """Changes worth trying: the same run with less memory first, then smaller batches."""
    devices = len(topologies.devices(topology, slices)[1])
    remat = {} if config.model.remat == "full" else {"model.remat": "full"}
    if remat:
        yield remat
    splits = [n for n in (2, 4, 8) if config.batch_size % (config.grad_accumulation_steps * n * devices) == 0]
    for split in splits:
        yield remat | {"grad_accumulation_steps": config.grad_accumulation_steps * split}
    per_slice = devices // slices
    fsdp = {"mesh.data": slices, "mesh.fsdp": per_slice, "mesh.tensor": 1}
    yield remat | fsdp
    for split in splits[-1:]:
        yield remat | fsdp | {"grad_accumulation_steps": config.grad_accumulation_steps * split}
    for tensor in (4, 8):
        if per_slice % tensor == 0:
            yield remat | {"mesh.data": slices, "mesh.fsdp": per_slice // tensor, "mesh.tensor": tensor}
    for smaller in (2, 4):
        if config.batch_size % (smaller * devices) == 0:
            yield remat | fsdp | {"batch_size": config.batch_size // smaller, "grad_accumulation_steps": 1}
