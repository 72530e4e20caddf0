"""Settings for every test: jaxtyping annotations are checked, silent rank promotion is an error."""

import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parent))

from jaxtyping import install_import_hook

install_import_hook("glm_jax", "typechecker.check")

import jax  # noqa: E402 (after the hook)
import pytest  # noqa: E402
from compiler_flags import set_flags  # noqa: E402
from fidelity import RECORD, Fidelity  # noqa: E402

set_flags(optimise=RECORD in os.environ)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def fidelity(request):
    """Compares with the original, for docs/fidelity.md; see tests/fidelity.py."""
    return Fidelity(request.node.nodeid)


def pytest_collection_modifyitems(config, items):
    """While docs/fidelity.md is made, only the tests that compare run."""
    if os.environ.get(RECORD):
        config.hook.pytest_deselected(items=[item for item in items if "fidelity" not in item.fixturenames])
        items[:] = [item for item in items if "fidelity" in item.fixturenames]
