"""Which device has which place: the mesh.

data    copies of the model; each reads its part of the batch
fsdp    as data; parameters and optimizer state are split too, gathered when used (ZeRO, Rajbhandari et al. 2020)
tensor  heads, feed-forward width and vocabulary are split (Megatron, Shoeybi et al. 2019)
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from glm_jax.distributed.accelerators import accelerator_of

logger = logging.getLogger(__name__)

MESH_AXES = ("data", "fsdp", "tensor")


def make_mesh(
    shape: Mapping[str, Any] | str = "auto",
    devices: Sequence[Any] | None = None,
    embed_size: int | None = None,
    state_bytes: float | None = None,
) -> Mesh:
    """Returns a mesh with the axes data, fsdp, tensor, all `AxisType.Auto` (`jax.make_mesh` alone makes Explicit ones).

    Args:
      shape: sizes by axis name, absent axes are 1, one may be -1 for "the rest"; or "auto" (`choose_mesh_shape`).
      devices: all devices of all hosts by default; or those of an ahead-of-time topology.
      embed_size: width of a head, used by "auto".
      state_bytes: of parameters and optimizer, used by "auto".

    Raises:
      ValueError: unknown axis, or sizes whose product is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    if isinstance(shape, str):
        if shape != "auto":
            raise ValueError(f"mesh shape {shape!r}: give 'auto' or sizes such as {{'data': 2, 'fsdp': 4}}")
        shape, why = choose_mesh_shape(devices, embed_size, state_bytes)
        logger.info("mesh: %s", why)
    sizes = _complete(shape, len(devices))
    types = (AxisType.Auto,) * len(MESH_AXES)
    slices = len(_group_sizes(devices, "slice_index"))
    if slices == 1 and devices[0].platform != "tpu":
        return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=types, devices=devices)
    from jax.experimental import mesh_utils

    if slices == 1:  # an axis may be a part of an axis of the torus: 4 x 16 on 8 x 8 chips
        grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
        return Mesh(grid, MESH_AXES, axis_types=types)
    # Between slices there is only the data-centre network: the data axis alone may cross it.
    if sizes["data"] % slices:
        raise ValueError(f"mesh {shape_text(sizes)} over {slices} TPU slices: data must be a multiple of {slices}")
    within = (sizes["data"] // slices, sizes["fsdp"], sizes["tensor"])
    grid = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)
    return Mesh(grid, MESH_AXES, axis_types=types)


def choose_mesh_shape(
    devices: Sequence[Any] | None = None, embed_size: int | None = None, state_bytes: float | None = None
) -> tuple[dict[str, int], str]:
    """Returns the "auto" mesh shape and one sentence that explains it.

    Devices with fast links between them (one TPU slice, one GPU host) share the parameters (fsdp); over slower links
    only gradients travel (data). `embed_size` limits fsdp to a divisor of it: give the width of a head, which divides
    the model's. Of TPUs no more devices share than it takes to bring `state_bytes` (parameters and optimizer) down to
    4 GB and an eighth of the memory: over large groups, and over slivers of an array, XLA gathers by all-reduce, which
    moves twice the bytes and holds whole gradients. Tensor parallelism is never chosen.
    """
    devices = list(jax.devices() if devices is None else devices)
    groups, link = _linked(devices)
    if len(set(groups)) != 1:
        raise ValueError(f"{link}s of different sizes {groups}: give the mesh shape instead of 'auto'")
    per_group = groups[0]
    fsdp = math.gcd(per_group, embed_size) if embed_size else per_group
    chip = accelerator_of(devices[0])
    limit, memory = fsdp, chip.hbm_bytes if chip and chip.interconnect else None  # of a TPU
    if memory and state_bytes:
        fits = [n for n in range(1, limit + 1) if limit % n == 0 and state_bytes / n <= min(memory / 8, 4e9)]
        fsdp = fits[0] if fits else limit
    shape = {"data": len(devices) // fsdp, "fsdp": fsdp, "tensor": 1}
    why = f"{len(devices)} {devices[0].device_kind} in {len(groups)} {link}(s): {shape_text(shape)}; "
    why += f"parameters are split over {fsdp} of the {per_group} devices of a {link}"
    if fsdp < limit:
        why += f", where parameters and optimizer take {100 * state_bytes / fsdp / memory:.0f} % of its memory"
    elif fsdp < per_group:
        why += f", which must divide the width {embed_size} ({per_group} does not)"
    return shape, why


def inference_mesh(num_heads: int, vocab_size: int, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a model that is opened to be used, not trained: every device holds a part of each matrix.

    Writing a token reads all parameters once. With `tensor` each device reads its own; with `fsdp` all would be
    gathered for every token. Devices that do not divide heads and vocabulary hold copies, as do hosts and slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    tensor = math.gcd(num_heads, vocab_size, *_linked(devices)[0])
    return make_mesh({"data": -1, "tensor": tensor}, devices)


def shape_text(sizes: Mapping[str, int]) -> str:
    """Sizes as people write them: "data=2 x fsdp=4 x tensor=1"."""
    return " x ".join(f"{axis}={size}" for axis, size in sizes.items())


def _linked(devices):
    """Sizes of the groups of devices with fast links between them, and what such a group is called."""
    if devices[0].platform == "tpu":
        return _group_sizes(devices, "slice_index"), "TPU slice"
    return _group_sizes(devices, "process_index"), "host"


def _complete(shape: Mapping[str, Any], devices: int) -> dict[str, int]:
    unknown = sorted(set(shape) - set(MESH_AXES))
    if unknown:
        raise ValueError(f"mesh axes {unknown} do not exist; there are {', '.join(MESH_AXES)}")
    sizes = {axis: shape.get(axis, 1) for axis in MESH_AXES}
    for axis, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or (size < 1 and size != -1):
            raise ValueError(f"mesh axis {axis} = {size!r}: must be a positive whole number, or -1 for the rest")
    rest = [axis for axis, size in sizes.items() if size == -1]
    product = math.prod(size for size in sizes.values() if size != -1)
    if len(rest) > 1:
        raise ValueError(f"mesh {shape_text(sizes)}: only one axis can be -1, the rest")
    if rest and devices % product == 0:
        sizes[rest[0]] = devices // product
    elif product != devices:
        raise ValueError(
            f"mesh {shape_text(sizes)} does not fit {devices} devices (the sizes given multiply to {product}); "
            "change a size, or give one axis -1 to take the rest"
        )
    return sizes


def _group_sizes(devices: Sequence[Any], attribute: str) -> list[int]:
    groups: dict[int, int] = {}
    for device in devices:
        index = getattr(device, attribute, 0) or 0
        groups[index] = groups.get(index, 0) + 1
    return [groups[index] for index in sorted(groups)]
