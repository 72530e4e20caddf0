"""Checkpoints of the original GLM, in and out.

`load` and `from_pretrained` read the original's own folders, the hub's and this package's; `export` writes all three.
"""

from glm_jax.interop.errors import FormatError, UnsafeFileError
from glm_jax.interop.export import check_new, export, export_loaded
from glm_jax.interop.load import Pretrained, from_pretrained, load
from glm_jax.interop.load_report import LoadReport

__all__ = [
    "FormatError", "LoadReport", "Pretrained", "UnsafeFileError", "check_new", "export", "export_loaded",
    "from_pretrained", "load",
]  # fmt: skip
