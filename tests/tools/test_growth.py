"""Time and memory of a step by its size, measured and drawn."""

import jax
import pytest

from tests.helpers.benchmark_keys import KEYS
from tools import growth


@pytest.mark.thorough
def test_growth_is_measured_and_drawn(tmp_path):
    jax.devices()  # the process keeps its one device, as other tests expect
    result = growth.run(picture=str(tmp_path / "growth.svg"), largest=2, repeats=1)
    assert result.keys() >= KEYS
    assert set(result["sweeps"]) == {"batch", "row length", "layers", "devices"}
    points = result["sweeps"]["layers"]
    assert points["1"]["state_bytes"] < points["2"]["state_bytes"]
    assert points["1"]["useful_flops"] < points["2"]["useful_flops"]
    assert (tmp_path / "growth.svg").stat().st_size > 1000
    with pytest.raises(ValueError, match="must end in"):
        growth.run(picture="growth.pdf")
