"""Plans of fine-tuning: what tuning methods need of a chip, compiled without the hardware."""

import json

import pytest

from glm_jax.cli import plan as verb
from glm_jax.cli.configs import read_config
from glm_jax.planning import topologies
from glm_jax.tuning.plan import plan, plan_table
from tests.helpers import plan_summaries
from tests.helpers.paths import ROOT

CONFIG = str(ROOT / "configs/finetune/ag_news.py")


@plan_summaries.needs_libtpu
@pytest.mark.thorough
def test_methods_need_less_than_full():
    config = read_config(CONFIG, {"frozen_dtype": "bfloat16", "model.num_layers": "2", "batch_size": "16"})
    full, lora, prefix = plan(config, "v5e:2x2", size="base", words=20, methods=("full", "lora", "p_tuning_v2"))
    assert full["frozen_bytes"] == 0
    for one in (lora, prefix):
        assert one["fits"]
        assert one["optimizer_bytes"] < full["optimizer_bytes"] / 20
        assert one["peak_bytes"] < full["peak_bytes"]
        assert one["trained_parameters"] < full["trained_parameters"] / 20
    lines = plan_table([full, lora, prefix]).splitlines()
    assert lines[1].split()[:2] == ["method", "trained"]
    assert [line.split()[0] for line in lines[2:5]] == ["full", "lora", "p_tuning_v2"]


@plan_summaries.needs_libtpu
@pytest.mark.thorough
def test_the_verb_plans_fine_tuning(capsys):
    verb.main([
        f"--config={CONFIG}", "--topology=v5e:2x2", "--size=base", "--words=20", "--json", "--config.batch_size=16",
    ])  # fmt: skip
    (one,) = json.loads(capsys.readouterr().out)
    assert one["method"] == "full"
    assert one["chips"] == len(topologies.devices("v5e:2x2")[1])
