"""Arrays that are read when they are needed, one at a time."""

import dataclasses
import math
from collections.abc import Callable

import ml_dtypes
import numpy as np

DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}
FLOATS = ("float32", "float16", "bfloat16", "float64")
COMPUTE_DTYPES = FLOATS[:3]


def check_dtype(name: str) -> None:
    """Raises ValueError for a dtype that a model neither computes in nor is exported in."""
    if name not in COMPUTE_DTYPES:
        raise ValueError(f"dtype {name!r} is not one of {', '.join(COMPUTE_DTYPES)}")


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """An array on disk, or one still to be written.

    Attributes:
      read: returns the whole array, C-contiguous; raises FormatError when the file is damaged.
      file: where it comes from, for reports and errors.
      checksum: whether `read` verifies a checksum; without one a flipped bit cannot be noticed.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    file: str = "memory"
    checksum: bool = True

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def of_array(array: np.ndarray) -> LazyTensor:
    """An array that is already in memory."""
    array = np.asarray(array)
    return LazyTensor(array.shape, array.dtype, lambda: array)
