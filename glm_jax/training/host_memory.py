"""What glibc does with the memory that XLA's CPU backend frees in every step, and with what compiling leaves behind.

Nothing is changed on machines with an accelerator, where the host only feeds it, and on systems other than Linux.
"""

import contextlib
import ctypes
import functools
import pathlib
import re
import sys

# Smaller chunks wait in caches of their thread, larger ones are buffers of a step.
_SMALLEST_FRAGMENT, _LARGEST_FRAGMENT = 1032, 2**22
_HEADER = 16
_BIN = re.compile(rb'<size from="(\d+)" to="(\d+)" total="\d+" count="(\d+)"/>')

_aside: list[int] = []  # addresses of what is kept from circulation


def keep_freed_memory() -> None:
    """Lets glibc reuse freed memory instead of returning it to the system. Call it before JAX starts its threads.

    glibc gives large buffers back, and their pages fault in again: on two cores that was a third of the step. The
    process keeps its peak memory instead.
    """
    if (libc := _glibc()) is None:
        return
    # M_MMAP_MAX, M_TRIM_THRESHOLD (never), M_ARENA_MAX, M_TOP_PAD: room beside a step's buffer for what small
    # allocations take of it in between, or the next step finds no place that is large enough.
    for parameter, value in ((-4, 0), (-1, -1), (-8, 1), (-2, 2**30)):
        libc.mallopt(parameter, value)
    # In huge pages, where the system leaves that to processes: small ones cost a small model's step a hundredth or two.
    libc.free(libc.malloc(2**26))  # the heap grows by that, and by M_TOP_PAD
    end = libc.sbrk(0)
    start = (end - 2**30) & -(2**21)
    libc.madvise(start, end - start, 14)  # MADV_HUGEPAGE; its failure changes nothing


def set_fragments_aside() -> None:
    """Takes free memory in small pieces out of circulation. Call it when a program has been compiled and has run.

    Compiling leaves tens of thousands of free pieces between what it keeps, some 300 MB in all. Every product
    asks for a buffer, and glibc walks through the pieces to find the best: 8 % of a small model's step. The next call
    gives back what this one took, so that calling it often takes no more.
    """
    if (libc := _glibc()) is None:
        return
    for address in _aside:
        libc.free(address)
    _aside.clear()
    for _ in range(2):  # a piece that is larger than asked leaves a smaller one
        for size, count in sorted(_fragments(libc), reverse=True):
            _aside.extend(libc.malloc(size - _HEADER) for _ in range(count))


def _fragments(libc):
    """(Least size, number) of the free pieces in each of glibc's bins that hold fragments."""
    text, length = ctypes.c_void_p(), ctypes.c_size_t()
    stream = libc.open_memstream(ctypes.byref(text), ctypes.byref(length))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    found = [tuple(map(int, sizes)) for sizes in _BIN.findall(ctypes.string_at(text.value, length.value))]
    libc.free(text)
    return [(low, count) for low, high, count in found if low >= _SMALLEST_FRAGMENT and high <= _LARGEST_FRAGMENT]


@functools.cache
def _glibc():
    accelerators = ("nvidia[0-9]*", "accel*", "vfio/[0-9]*", "kfd")
    if sys.platform != "linux" or any(any(pathlib.Path("/dev").glob(pattern)) for pattern in accelerators):
        return None
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.PyDLL(None)
        pointer = ctypes.c_void_p
        for name, result, arguments in (
            ("mallopt", ctypes.c_int, (ctypes.c_int, ctypes.c_int)),
            ("malloc_info", ctypes.c_int, (ctypes.c_int, pointer)),
            ("open_memstream", pointer, (pointer, pointer)),
            ("fclose", ctypes.c_int, (pointer,)),
            ("malloc", pointer, (ctypes.c_size_t,)),
            ("free", None, (pointer,)),
            ("sbrk", pointer, (ctypes.c_ssize_t,)),
            ("madvise", ctypes.c_int, (pointer, ctypes.c_size_t, ctypes.c_int)),
        ):
            function = getattr(libc, name)
            function.restype, function.argtypes = result, arguments
        return libc
    return None
