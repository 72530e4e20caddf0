"""Settings for every test: jaxtyping annotations are checked, silent rank promotion is an error."""

import gc
import logging
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

from tests.helpers import typechecker  # noqa: F401 (the hook names it as an attribute)

install_import_hook("glm_jax", "tests.helpers.typechecker.check")

import jax  # noqa: E402 (after the hook)
import pytest  # noqa: E402

from tests.helpers.compiler_flags import set_flags  # noqa: E402
from tests.helpers.fidelity import RECORD, Fidelity  # noqa: E402

set_flags(optimise=RECORD in os.environ)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def fidelity(request):
    """Compares with the original, for docs/fidelity.md; see tests/helpers/fidelity.py."""
    return Fidelity(request.node.nodeid)


@pytest.fixture(autouse=True)
def _own_logging():
    """What a test sets up to show log lines ends with it: a handler of a later test's lines would keep its arrays."""
    root, package = logging.getLogger(), logging.getLogger("glm_jax")
    handlers, levels = root.handlers[:], (root.level, package.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    package.setLevel(levels[1])


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Every program that XLA compiles for CPUs takes memory maps; at 65,530 Linux gives no more, and LLVM aborts."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 25_000:
        jax.clear_caches()
        gc.collect()


def pytest_collection_modifyitems(config, items):
    """While docs/fidelity.md is made, only the tests that compare run."""
    if os.environ.get(RECORD):
        config.hook.pytest_deselected(items=[item for item in items if "fidelity" not in item.fixturenames])
        items[:] = [item for item in items if "fidelity" in item.fixturenames]
