"""What one device of an accelerator can do at most; the bounds that measurements are held against.

Sources, read in November 2026: TPUs, the pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x" of
docs.cloud.google.com/tpu/docs; GPUs, NVIDIA's data sheets, dense products without sparsity.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of one JAX device: a chip, except for tpu7x, where it is one of its two halves."""

    name: str
    kind: str  # how jax.Device.device_kind begins
    flops: float  # bfloat16 products with float32 sums, a second
    hbm_bytes: float
    hbm_bandwidth: float  # bytes a second


_T, _G, _GI = 1e12, 1e9, 2.0**30

# A kind that begins like another one stands before it.
CHIPS = (
    Chip("v4", "TPU v4", 275 * _T, 32 * _GI, 1200 * _G),
    Chip("v5e", "TPU v5 lite", 197 * _T, 16 * _GI, 819 * _G),
    Chip("v5p", "TPU v5", 459 * _T, 95 * _GI, 2765 * _G),
    Chip("v6e", "TPU v6 lite", 918 * _T, 32 * _GI, 1638 * _G),
    Chip("tpu7x", "TPU7x", 2307 * _T / 2, 96 * _GI, 7380 * _G / 2),
    Chip("a100-40gb", "NVIDIA A100-SXM4-40GB", 312 * _T, 40 * _G, 1555 * _G),
    Chip("a100-80gb", "NVIDIA A100-SXM4-80GB", 312 * _T, 80 * _G, 2039 * _G),
    Chip("l4", "NVIDIA L4", 121 * _T, 24 * _G, 300 * _G),
    Chip("h100-sxm", "NVIDIA H100 80GB HBM3", 989.4 * _T, 80 * _G, 3350 * _G),
    Chip("h100-pcie", "NVIDIA H100 PCIe", 756 * _T, 80 * _G, 2000 * _G),
    Chip("h200", "NVIDIA H200", 989.4 * _T, 141 * _G, 4800 * _G),
)


def chip_of(device: Any) -> Chip | None:
    """The entry of a `jax.Device`, or None when it is not in the table (a CPU, for one)."""
    return next((chip for chip in CHIPS if device.device_kind.startswith(chip.kind)), None)
