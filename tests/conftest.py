"""Settings for every test: jaxtyping annotations are checked, silent rank promotion is an error."""

import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parent))

from jaxtyping import install_import_hook

install_import_hook("glm_jax", "typechecker.check")

import jax  # noqa: E402 (after the hook)

jax.config.update("jax_numpy_rank_promotion", "raise")
