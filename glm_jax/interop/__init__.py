"""Checkpoints of the original GLM, of the hub and of runs: `from_pretrained` opens them, `export` writes them."""

from glm_jax.interop.errors import FormatError, UnsafeFileError
from glm_jax.interop.export import export
from glm_jax.interop.folders import check_new
from glm_jax.interop.load import from_pretrained
from glm_jax.interop.load_report import LoadReport
from glm_jax.interop.pretrained import Pretrained

__all__ = ["FormatError", "LoadReport", "Pretrained", "UnsafeFileError", "check_new", "export", "from_pretrained"]
