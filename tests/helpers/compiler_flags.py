"""What the tests tell XLA, in this process and in those that they start."""

import os
from importlib import metadata

DEVICES = "--xla_force_host_platform_device_count="
# LLVM takes it easy: the tests compile far more than they compute. Those of step, model and vocabulary: 40 % less time.
_LITTLE_OPTIMISED = "--xla_backend_optimization_level=0"
# The MLIR emitters of JAX 0.10 take three quarters of the time that a step needs to compile; later versions have no
# others, and no such flag.
if metadata.version("jaxlib").startswith("0.10."):
    _LITTLE_OPTIMISED += " --xla_cpu_use_fusion_emitters=false"


def set_flags(optimise: bool) -> None:
    """For this process, before it compiles, and those to come. `optimise`: as runs are."""
    flags = os.environ.get("XLA_FLAGS", "").replace(_LITTLE_OPTIMISED, "")
    os.environ["XLA_FLAGS"] = " ".join([flags, "" if optimise else _LITTLE_OPTIMISED]).strip()


def fake_devices(count: int) -> dict[str, str]:
    """An environment in which a process sees `count` devices, and compiles as this one."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}{count}"
    return os.environ | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
