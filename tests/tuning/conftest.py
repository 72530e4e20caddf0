"""What the tests of fine-tuning share."""

import pytest

from tests.helpers import tuning_runs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A pretrained run of one step, and data of several tasks."""
    return tuning_runs.prepare(tmp_path_factory.mktemp("tuning"))
