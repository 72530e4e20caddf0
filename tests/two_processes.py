"""Runs a program as two processes of one `jax.distributed` job on fake CPU devices."""

import os
import socket
import subprocess
import sys


def free_address() -> str:
    """An address of this machine at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def run(program: str, devices: int, *arguments: str, timeout: int = 120) -> list[str]:
    """What both processes print. `program` gets the coordinator's address, its own number and then `arguments`."""
    address = free_address()
    env = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, address, str(i), *arguments],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    try:
        return [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
