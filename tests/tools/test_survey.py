"""The survey of plans: the smallest slice that fits, and resuming."""

import pytest

from glm_jax.planning import topologies
from tests.helpers import plan_summaries
from tools import survey


def test_a_survey_takes_the_smallest_that_fits_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    plans, asked = tmp_path / "plans.jsonl", []

    def plan(config, topology, changes):
        asked.append((config, topology))
        if len(asked) == 3:
            raise KeyboardInterrupt
        common = {
            "topology": topology, "mesh": {"data": 4, "fsdp": 4}, "argument_bytes": 1e9, "temporary_bytes": 2e9,
            "headroom": 0.5, "compile_seconds": 60.0,
        }  # fmt: skip
        if topology == "v5e:4x4":
            return common | {"fits": False}
        bounds = {"mfu_bound": 0.6, "limited_by": "hbm", "tokens_per_second_all_chips": 2.5e6, "days": 1.25}
        return common | bounds | {"fits": True}

    monkeypatch.setattr(survey, "_plan", plan)
    with pytest.raises(KeyboardInterrupt):
        list(survey.survey(["configs/a.py", "configs/b.py"], ["v5e"], plans))
    with plans.open("a") as file:
        file.write('{"config": "b", "top')  # what a kill leaves
    found = list(survey.survey(["configs/a.py", "configs/b.py"], ["v5e"], plans))
    assert [(p["config"], p["topology"]) for p in found] == [("a", "v5e:8x8"), ("b", "v5e:8x8")]
    assert asked[:2] == [("configs/a.py", "v5e:4x4"), ("configs/a.py", "v5e:8x8")]
    assert asked[2:] == [("configs/b.py", "v5e:4x4")] * 2 + [("configs/b.py", "v5e:8x8")]
    assert set(survey.read(plans)) == {(config, f"v5e:{shape}") for config in "ab" for shape in ("4x4", "8x8")}
    assert survey.row(found[0]) == "| a | v5e:8x8 | 4 x 4 | 1.0 | 2.0 | 50 % | 60 % | hbm | 2.50 M | 1.2 | 60 s |"
    assert survey.read(plans, ["seed=1"]) == {}  # planned with other changes
    with pytest.raises(ValueError, match="no slices are listed for v9; there are v5e, v6e, v4, v5p"):
        list(survey.survey([], ["v9"], plans))


@plan_summaries.needs_libtpu
@pytest.mark.parametrize("shape", survey.LADDERS.values())
def test_a_survey_climbs_slices_that_exist(shape):
    assert [len(topologies.devices(topology)[1]) for topology in shape[:2]] == [16, 64]
