"""Tunes glibc's memory allocator for training on CPU: buffers freed in every step, and fragments left by compilation.

Nothing is changed on machines with an accelerator, where the host only feeds it, and on systems other than Linux.
"""

import contextlib
import ctypes
import functools
import pathlib
import re
import sys

# Smaller chunks stay in caches of their thread, larger ones are buffers of a step.
_SMALLEST_FRAGMENT, _LARGEST_FRAGMENT = 1032, 2**22
_HEADER = 16
_BIN = re.compile(rb'<size from="(\d+)" to="(\d+)" total="\d+" count="(\d+)"/>')

_aside: list[int] = []  # addresses of the fragments that are set aside


def keep_freed_memory() -> None:
    """Lets glibc reuse freed memory instead of returning it to the system.

    Call it after the imports, whose memory would lie between the buffers of a step (5 % of a small model's step), and
    before JAX starts its threads, which it does with its first array.

    glibc gives large buffers back, and their pages fault in again: on two cores that was a third of the step. The
    process keeps its peak memory instead.
    """
    if (libc := _glibc()) is None:
        return
    # M_MMAP_MAX, M_TRIM_THRESHOLD (never), M_ARENA_MAX, M_TOP_PAD. The padding leaves room for small allocations
    # between two steps; without it the next step's buffer would not fit into the freed one.
    for parameter, value in ((-4, 0), (-1, -1), (-8, 1), (-2, 2**30)):
        libc.mallopt(parameter, value)
    # Huge pages, where the system lets processes choose: small pages make a small model's step 1 to 2 % slower.
    libc.free(libc.malloc(2**26))  # the heap grows by that, and by M_TOP_PAD
    end = libc.sbrk(0)
    start = (end - 2**30) & -(2**21)
    libc.madvise(start, end - start, 14)  # MADV_HUGEPAGE; its failure changes nothing


def set_fragments_aside() -> None:
    """Allocates free memory fragments, so that glibc no longer searches them. Call it after a compiled program has run.

    Compilation leaves tens of thousands of free fragments, some 300 MB in all. Every matrix multiplication asks for a
    buffer, and glibc searches the fragments for the best fit: 8 % of a small model's step. The next call frees what
    this one allocated, so repeated calls take no more memory.
    """
    if (libc := _glibc()) is None:
        return
    for address in _aside:
        libc.free(address)
    _aside.clear()
    for _ in range(2):  # a fragment that is larger than requested leaves a smaller one
        for size, count in sorted(_fragments(libc), reverse=True):
            _aside.extend(libc.malloc(size - _HEADER) for _ in range(count))


def _fragments(libc):
    """(Least size, number) of the free chunks in each of glibc's bins that hold fragments."""
    text, length = ctypes.c_void_p(), ctypes.c_size_t()
    stream = libc.open_memstream(ctypes.byref(text), ctypes.byref(length))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    bins = [tuple(map(int, sizes)) for sizes in _BIN.findall(ctypes.string_at(text.value, length.value))]
    libc.free(text)
    return [(low, count) for low, high, count in bins if low >= _SMALLEST_FRAGMENT and high <= _LARGEST_FRAGMENT]


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
