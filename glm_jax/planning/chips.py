"""How TPU chips are connected, and which topologies there are; what one chip can do stands in glm_jax/chips.py.

Sources: the pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x" of docs.cloud.google.com/tpu/docs (read in
November 2026); links of v4: Jouppi et al., ISCA 2023, table 4. The pages give the interconnect of a chip in both
directions together; a link's speed here is one direction: that figure / 2 / number of links.
"""

import dataclasses
import itertools
from typing import Any

from glm_jax import chips


@dataclasses.dataclass(frozen=True)
class Chip(chips.Chip):
    """One JAX device of a TPU generation, with its links. Speeds are bytes a second."""

    dimensions: int  # of the torus; two links a dimension
    link_bandwidth: float  # of one link, one direction
    dcn_bandwidth: float  # share of its host's network card, one direction
    wraps: int  # an axis of a multiple of so many chips is a ring, otherwise a line


_LINKS = {
    "v4": (3, 50e9, 50e9 / 8, 4),  # its page gives no data-centre bandwidth: v5p's
    "v5e": (2, 50e9, 25e9 / 8, 16),
    "v5p": (3, 100e9, 50e9 / 8, 4),
    "v6e": (2, 100e9, 100e9 / 8, 16),
    "tpu7x": (3, 50e9, 100e9 / 8 / 2, 4),
}
CHIPS = {chip.name: Chip(*dataclasses.astuple(chip), *_LINKS[chip.name]) for chip in chips.CHIPS if chip.name in _LINKS}


def of_device(device: Any) -> Chip | None:
    """The chip that a JAX device is (a part of), or None when it is no TPU of the table."""
    chip = chips.chip_of(device)
    return None if chip is None else CHIPS.get(chip.name)


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
