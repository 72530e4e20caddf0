"""Peak rates of accelerators, and how TPU chips are connected: the bounds that measurements are compared with.

Sources, read in November 2026. TPUs: the pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x" of
docs.cloud.google.com/tpu/docs; links of v4: Jouppi et al., ISCA 2023, table 4. The pages give the interconnect of a
chip in both directions together; a link's speed here is one direction: that figure / 2 / number of links. GPUs: beside
each, NVIDIA's document as others quote it; where it gives FLOP/s with sparsity, half of them.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Interconnect:
    """How the chips of a TPU generation are connected. Speeds are bytes a second."""

    dimensions: int  # of the torus; two links a dimension
    link_bandwidth: float  # of one link, one direction
    dcn_bandwidth: float  # share of its host's network card, one direction
    wraps: int  # an axis of a multiple of so many chips is a ring, otherwise a line


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """Peak rates of one JAX device: a chip, except for tpu7x, where it is one of its two halves."""

    name: str
    kind: str  # jax.Device.device_kind; of a TPU how it begins
    flops: float  # bfloat16 products with float32 sums, a second
    hbm_bytes: float
    hbm_bandwidth: float  # bytes a second
    interconnect: Interconnect | None = None  # of a TPU


_T, _G, _GI = 1e12, 1e9, 2.0**30

ACCELERATORS = (
    Accelerator(
        "v4", "TPU v4", 275 * _T, 32 * _GI, 1200 * _G, Interconnect(3, 50e9, 50e9 / 8, 4)
    ),  # its page gives no data-centre bandwidth: v5p's
    Accelerator("v5e", "TPU v5 lite", 197 * _T, 16 * _GI, 819 * _G, Interconnect(2, 50e9, 25e9 / 8, 16)),
    Accelerator(
        "v5p", "TPU v5", 459 * _T, 95 * _GI, 2765 * _G, Interconnect(3, 100e9, 50e9 / 8, 4)
    ),  # after v5e, whose kind has the same prefix
    Accelerator("v6e", "TPU v6 lite", 918 * _T, 32 * _GI, 1638 * _G, Interconnect(2, 100e9, 100e9 / 8, 16)),
    Accelerator("tpu7x", "TPU7x", 2307 * _T / 2, 96 * _GI, 7380 * _G / 2, Interconnect(3, 50e9, 100e9 / 8 / 2, 4)),
    # A100 datasheet (1758950, r4): 312 dense; 1,555, 1,935 and 2,039 GB/s
    Accelerator("a100-40gb", "NVIDIA A100-SXM4-40GB", 312 * _T, 40 * _G, 1555 * _G),
    Accelerator("a100-80gb", "NVIDIA A100-SXM4-80GB", 312 * _T, 80 * _G, 2039 * _G),
    Accelerator("a100-pcie-40gb", "NVIDIA A100-PCIE-40GB", 312 * _T, 40 * _G, 1555 * _G),
    Accelerator("a100-pcie-80gb", "NVIDIA A100 80GB PCIe", 312 * _T, 80 * _G, 1935 * _G),
    # L4 datasheet: 242 with sparsity, 300 GB/s. L40 and L40S datasheets: 181.05 and 362.05 dense, 864 GB/s
    Accelerator("l4", "NVIDIA L4", 121 * _T, 24 * _G, 300 * _G),
    Accelerator("l40", "NVIDIA L40", 181.05 * _T, 48 * _G, 864 * _G),
    Accelerator("l40s", "NVIDIA L40S", 362.05 * _T, 48 * _G, 864 * _G),
    # H100 white paper: 989.4 and 756 dense; datasheet: 1,979 and 1,513 with sparsity, 3.35 and 2 TB/s
    Accelerator("h100-sxm", "NVIDIA H100 80GB HBM3", 989.4 * _T, 80 * _G, 3350 * _G),
    Accelerator("h100-pcie", "NVIDIA H100 PCIe", 756 * _T, 80 * _G, 2000 * _G),
    # H200 datasheet: 1,979 with sparsity, 141 GB, 4.8 TB/s
    Accelerator("h200", "NVIDIA H200", 989.4 * _T, 141 * _G, 4800 * _G),
)


def accelerator_of(device: Any) -> Accelerator | None:
    """The entry of a `jax.Device`, or None when it is not in the table (a CPU, for one).

    A GPU's kind is its whole name: an "NVIDIA H200 NVL" is slower than an "NVIDIA H200".
    """

    def is_kind(chip):
        name = device.device_kind
        return name.startswith(chip.kind) if chip.kind.startswith("TPU") else name == chip.kind

    return next(filter(is_kind, ACCELERATORS), None)
