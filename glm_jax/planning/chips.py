"""What a TPU chip can do, and which topologies there are.

Sources: the pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x" of docs.cloud.google.com/tpu/docs (read in
November 2026); links of v4: Jouppi et al., ISCA 2023, table 4. The pages give the interconnect of a chip in both
directions together; a link's speed here is one direction: that figure / 2 / number of links.
"""

import dataclasses
import itertools
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device of a generation: a chip, except for tpu7x. Speeds are per second."""

    name: str
    device_kind: str  # as JAX calls its devices
    flops: float  # bfloat16 products, peak
    hbm_bytes: float
    hbm_bandwidth: float
    dimensions: int  # of the torus; two links a dimension
    link_bandwidth: float  # of one link, one direction
    dcn_bandwidth: float  # share of its host's network card, one direction
    wraps: int  # an axis of a multiple of so many chips is a ring, otherwise a line


_GB, _GIB, _TERA = 1e9, 2.0**30, 1e12

CHIPS = {
    chip.name: chip
    for chip in (
        # The page of v4 gives no data-centre bandwidth: v5p's.
        Chip("v4", "TPU v4", 275 * _TERA, 32 * _GIB, 1200 * _GB, 3, 50 * _GB, 50e9 / 8, 4),
        Chip("v5e", "TPU v5 lite", 197 * _TERA, 16 * _GIB, 819 * _GB, 2, 50 * _GB, 25e9 / 8, 16),
        Chip("v5p", "TPU v5", 459 * _TERA, 95 * _GIB, 2765 * _GB, 3, 100 * _GB, 50e9 / 8, 4),
        Chip("v6e", "TPU v6 lite", 918 * _TERA, 32 * _GIB, 1638 * _GB, 2, 100 * _GB, 100e9 / 8, 16),
        # Half a chip: JAX shows each of its two cores as a device.
        Chip("tpu7x", "TPU7x", 2307 * _TERA / 2, 96 * _GIB, 7380 * _GB / 2, 3, 50 * _GB, 100e9 / 8 / 2, 4),
    )
}


def of_device(device: Any) -> Chip | None:
    """The chip that a JAX device is (a part of), or None when it is not in the table."""
    return next((chip for chip in CHIPS.values() if chip.device_kind == device.device_kind), None)


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
_CUBES = tuple(
    "x".join(map(str, sizes)) for sizes in itertools.combinations_with_replacement((4, 8, 12, 16, 20, 24), 3)
)


def parse(topology: str) -> tuple[Chip, tuple[int, ...]]:
    """The chip and the sizes of a topology such as "v5p:4x4x4".

    Raises ValueError with what exists when the generation is unknown or cannot be cut so.
    """
    name, _, shape = topology.partition(":")
    if name not in CHIPS:
        raise ValueError(f"topology {topology!r}: no chip {name!r}; there are {', '.join(CHIPS)}, as in v5p:4x4x4")
    chip = CHIPS[name]
    known = topologies(chip)
    if shape not in known:
        shown = [shape for shape in known if max(map(int, shape.split("x"))) <= 16]
        raise ValueError(f"topology {topology!r} does not exist; {name} comes as {', '.join(shown)}")
    return chip, tuple(map(int, shape.split("x")))


def topologies(chip: Chip) -> tuple[str, ...]:
    """The shapes that can be planned: flat ones for v5e and v6e, else a part of a cube or whole cubes of 4x4x4."""
    return _FLAT if chip.dimensions == 2 else _SMALL + _CUBES
