"""What was read from where."""

import dataclasses

import numpy as np

from glm_jax.files import text_table
from glm_jax.interop.tensors import LazyTensor


@dataclasses.dataclass
class LoadReport:
    """Every tensor of a checkpoint; `str()` of it is a table.

    Attributes:
      source: format and folder.
      tensors: by the original's names.
      notes: what was concluded or is worth knowing.
    """

    source: str
    tensors: dict[str, LazyTensor]
    notes: list[str]

    def summary(self) -> str:
        """One line."""
        count = sum(int(np.prod(tensor.shape)) for tensor in self.tensors.values())
        files = len({tensor.file for tensor in self.tensors.values()})
        dtypes = ", ".join(sorted({str(tensor.dtype) for tensor in self.tensors.values()}))
        return f"{self.source}: {len(self.tensors)} tensors, {count:,} values of {dtypes} from {files} file(s)"

    def __str__(self) -> str:
        rows = [("tensor", "shape", "dtype", "checksum", "file")]
        for key, tensor in self.tensors.items():
            shape = "x".join(map(str, tensor.shape))
            rows.append((key, shape, str(tensor.dtype), "verified" if tensor.checksum else "none", tensor.file))
        return "\n".join([self.summary(), *text_table(rows), *(f"note: {note}" for note in self.notes)])
