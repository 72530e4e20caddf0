"""Runs a program as two processes of one `jax.distributed` job on fake CPU devices."""

import socket
import subprocess
import sys
import tempfile
import time

from tests.helpers.compiler_flags import fake_devices


def free_address() -> str:
    """An address of this machine at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def run(program: str, devices: int, *arguments: str, timeout: int = 120) -> list[str]:
    """What both processes print. `program` gets the coordinator's address, its own number and then `arguments`."""
    address = free_address()
    env = fake_devices(devices)
    # Files, not pipes: a process whose full pipe nobody reads would stop, and the other would wait for it for ever.
    with tempfile.TemporaryFile("w+") as first, tempfile.TemporaryFile("w+") as second:
        outputs = (first, second)
        command = [sys.executable, "-c", program, address]
        processes = [
            subprocess.Popen([*command, str(i), *arguments], env=env, stdout=output, stderr=subprocess.STDOUT)
            for i, output in enumerate(outputs)
        ]
        deadline = time.monotonic() + timeout
        try:
            for process in processes:
                process.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise AssertionError("\n".join([str(error), *(text[-3000:] for text in _read(outputs))])) from error
        finally:
            for process in processes:
                process.kill()
        return _read(outputs)


def _read(outputs):
    for output in outputs:
        output.seek(0)
    return [output.read() for output in outputs]
