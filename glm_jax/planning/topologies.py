"""Devices of a TPU topology, without the hardware: libtpu compiles for them on any Linux x86 machine."""

import importlib.metadata
import itertools
import os
import re
from collections.abc import Sequence
from typing import Any

from glm_jax.distributed.accelerators import ACCELERATORS, Accelerator


class PlanningError(ValueError):
    """This machine cannot compile for TPUs: libtpu is missing or does not fit."""


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
_CUBES = tuple(
    "x".join(map(str, sizes)) for sizes in itertools.combinations_with_replacement((4, 8, 12, 16, 20, 24), 3)
)


def parse(topology: str) -> tuple[Accelerator, tuple[int, ...]]:
    """The chip and the sizes of a topology such as "v5p:4x4x4".

    Raises ValueError with the existing ones when the generation is unknown or has no slices of this shape.
    """
    name, _, shape = topology.partition(":")
    chips = {chip.name: chip for chip in ACCELERATORS if chip.interconnect}
    if name not in chips:
        raise ValueError(f"topology {topology!r}: no chip {name!r}; there are {', '.join(chips)}, as in v5p:4x4x4")
    chip = chips[name]
    known = topologies(chip)
    if shape not in known:
        shown = [shape for shape in known if max(map(int, shape.split("x"))) <= 16]
        raise ValueError(f"topology {topology!r} does not exist; {name} comes as {', '.join(shown)}")
    return chip, tuple(map(int, shape.split("x")))


def topologies(chip: Accelerator) -> tuple[str, ...]:
    """The shapes that can be planned: flat ones for v5e and v6e, else a part of a cube or whole cubes of 4x4x4."""
    return _FLAT if chip.interconnect.dimensions == 2 else _SMALL + _CUBES


def required_libtpu(requirements: Sequence[str] | None = None) -> str:
    """The libtpu version that the installed JAX needs, such as "0.0.42.*", from JAX's extra "tpu"."""
    if requirements is None:
        requirements = importlib.metadata.requires("jax") or []
    for line in requirements:
        pinned = re.match(r"libtpu\s*==\s*([\d.*]+)", line)
        if pinned:
            return pinned[1]
    raise PlanningError(f"jax {importlib.metadata.version('jax')} does not say which libtpu it needs; update jax")


def check_libtpu() -> str:
    """The installed libtpu's version. A libtpu of another JAX compiles, but its HLO cannot be read back.

    Raises PlanningError with the command that installs the right one.
    """
    required = required_libtpu()
    install = f"install it: pip install 'libtpu=={required}'"
    try:
        installed = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise PlanningError(f"planning compiles with libtpu, which is not installed; {install}") from None
    prefix = required.removesuffix("*").removesuffix(".").split(".")
    if installed.split(".")[: len(prefix)] != prefix:
        jax = importlib.metadata.version("jax")
        raise PlanningError(f"libtpu {installed} does not belong to jax {jax}: it needs {required}; {install}")
    return installed


def devices(topology: str, slices: int = 1) -> tuple[Accelerator, list[Any]]:
    """The chip of `topology` ("v5p:4x4x4") and the devices of `slices` slices of it; they can only be compiled for.

    Raises ValueError for a topology that does not exist or for no slice, PlanningError without a fitting libtpu.
    """
    chip, shape = parse(topology)
    if slices < 1:
        raise ValueError(f"slices = {slices}: give at least 1")
    check_libtpu()
    # There is no TPU and no metadata server to wait for, and another process may plan at the same time.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5p-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_STDERR_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    name = f"{chip.name}:{'x'.join(map(str, shape))}"
    options = {"num_slices": slices} if slices > 1 else {}
    if chip.name == "v4":
        options["chip_config_name"] = "megacore"  # both cores of a chip as one device, as JAX runs on v4
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:  # libtpu raises errors of its own types
        raise PlanningError(f"libtpu cannot make topology {topology}: {str(error).splitlines()[0]}") from None
    return chip, list(description.devices)
