"""Fragments of the C heap are set aside, and given back."""

import subprocess
import sys

import pytest

from glm_jax.training import host_memory

PROGRAM = """
from glm_jax.training import host_memory

libc = host_memory._glibc()
host_memory.keep_freed_memory()
held = [libc.malloc(size) for _ in range(1000) for size in (3000, 50_000)]
for address in held[1::2]:
    libc.free(address)
libc.malloc(60_000)  # glibc sorts what was freed when something else is asked for
count = lambda: sum(number for _, number in host_memory._fragments(libc))
before = count()
host_memory.set_fragments_aside()
after, aside = count(), len(host_memory._aside)
for address in held[::2]:
    libc.free(address)
host_memory.set_fragments_aside()
again = len(host_memory._aside)
print(before, after, aside, again)
"""


@pytest.mark.skipif(host_memory._glibc() is None, reason="there is an accelerator, or another C library")
def test_fragments_go_out_of_circulation_and_come_back():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, after, aside, again = map(int, done.stdout.split())
    assert before >= 500  # what was freed lies between what was kept
    assert after < before / 10
    assert aside >= 500
    assert again < aside / 2  # pieces came back, and grew together with what had stood between them
