"""What the tests of sweeps share."""

import pytest

from tests.helpers import sweep_runs, tuning_runs


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A pretrained run of one step, and data of a task."""
    return tuning_runs.prepare(tmp_path_factory.mktemp("sweeps"))


@pytest.fixture(scope="session")
def finished(place):
    """A sweep that nobody stopped, and its results."""
    from glm_jax.sweeps.run import sweep

    folder = place / "whole"
    return folder, sweep(sweep_runs.config(place), folder)
