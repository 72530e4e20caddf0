"""beartype as jaxtyping's checker, with Python's own rule that an int may stand for a float."""

import contextlib

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))


@contextlib.contextmanager
def unchecked():
    """Inside, annotations are not checked, as outside of the tests: for arguments that they would refuse first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
