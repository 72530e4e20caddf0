"""Plans of decoding against what can be worked out by hand. Compiles with libtpu; there is no TPU."""

import json
import os
import subprocess
import sys

import pytest

from glm_jax.config import model_config
from glm_jax.decoding import steps
from glm_jax.planning import decode
from glm_jax.planning.table import decode_table
from tests.helpers import plan_summaries
from tests.helpers.paths import ROOT

ASKED = {"prompts": 16, "context": 64, "new_tokens": 32}


def _plan(mesh, **asked):
    config = plan_summaries.config({f"mesh.{axis}": size for axis, size in mesh.items()})
    return decode.plan(config, "v5e:2x2", **(ASKED | asked))


@pytest.fixture(scope="module")
def by_tensor():
    return _plan({"tensor": 4})


@pytest.mark.thorough
@plan_summaries.needs_libtpu
def test_caches_are_split_over_all_chips(by_tensor):
    """Also the answers' own, which begin as zeros."""
    model = model_config(plan_summaries.config({}).model, 1024)
    assert by_tensor["cache_bytes"] == steps.cache_bytes(model, 16, 1, 64, 33) / 4
    assert by_tensor["argument_bytes"] >= by_tensor["cache_bytes"] + by_tensor["parameter_bytes"]
    assert by_tensor["peak_bytes"] < 2 * by_tensor["argument_bytes"]


@plan_summaries.needs_libtpu
def test_products_and_traffic_of_a_token(by_tensor):
    """Of 16 tokens a step: twice the parameters that they meet. Matrices are read once, in bfloat16."""
    width, layers, vocabulary = 256, 3, 1024
    matrices = layers * 12 * width**2 + vocabulary * width
    dense = 2 * 16 * matrices / 4
    scores = 4 * 16 * width * layers * (96 + 33) / 4  # keys and values of 64 and 33 columns, some padded
    assert dense <= by_tensor["flops_per_step"] <= dense + scores
    read = 2 * matrices / 4
    assert read <= by_tensor["hbm_bytes_per_step"] <= 2 * (read + by_tensor["cache_bytes"])
    assert by_tensor["uncounted_loops"] == 0


@pytest.mark.thorough
@plan_summaries.needs_libtpu
def test_parameters_split_by_fsdp_are_gathered_for_every_token(by_tensor):
    gathered = _plan({"fsdp": 4})
    matrices = 3 * 12 * 256**2 * 2
    assert matrices * 3 / 4 <= gathered["collectives"]["all-gather"] <= 1.2 * gathered["parameters"] * 2 * 3 / 4
    assert by_tensor["collectives"].get("all-gather", 0) < 0.01 * matrices
    assert gathered["limited_by"] == "interconnect"
    assert gathered["tokens_per_second"] < by_tensor["tokens_per_second"]


@plan_summaries.needs_libtpu
def test_what_would_fit_is_found_by_trying(monkeypatch):
    tried = []

    def plan(config, topology, slices, *, prompts, context, new_tokens):
        tried.append((dict(config.mesh), prompts))
        return {"fits": prompts == 4, "peak_bytes": prompts * 1e9}

    monkeypatch.setattr(decode, "plan", plan)
    tried_plans = decode.remedies(plan_summaries.config({"mesh.fsdp": 4}), "v5e:2x2", **ASKED)
    assert tried == [({"data": 1, "fsdp": 1, "tensor": 4}, prompts) for prompts in (16, 8, 4)]
    assert tried_plans[-1]["change"] == "--config.mesh.data=1 --config.mesh.fsdp=1 --config.mesh.tensor=4 --prompts=4"
    assert [one["fits"] for one in tried_plans] == [False, False, True]


@plan_summaries.needs_libtpu
def test_what_exceeds_the_memory_does_not_fit():
    result = _plan({"tensor": 4}, prompts=2**18)
    assert not result["fits"]
    assert result["headroom"] < 0
    assert "DOES NOT FIT" in decode_table(result)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"prompts": 0}, "prompts = 0: give at least 1"),
        ({"new_tokens": 0}, "new_tokens = 0: give at least 1"),
        ({"context": 4096}, "position_ids reach from 4095 .* the table holds positions 0 to 128"),
    ],
)
@plan_summaries.needs_libtpu
def test_what_cannot_be_decoded_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        _plan({}, **asked)


@pytest.mark.thorough
@plan_summaries.needs_libtpu
def test_the_verb_plans_decoding(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom tests.helpers import plan_summaries\n"
        "def get_config():\n    return plan_summaries.config({'model.num_layers': 2, 'model.hidden_size': 128})\n"
    )
    command = [sys.executable, "-m", "glm_jax", "plan", f"--config={config}", "--topology=v5e:2x2", "--decode"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    asked = ["--prompts=3", "--context=33", "--new_tokens=8", "--json"]
    done = subprocess.run([*command, *asked], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    plan = json.loads(done.stdout.splitlines()[-1])
    assert (plan["prompts"], plan["context_length"], plan["new_tokens"]) == (4, 48, 8)  # as the decoder rounds them
    assert plan["fits"]
    seconds = plan["prefill"]["seconds_bound"] + 8 * plan["seconds_per_step_bound"]
    assert plan["tokens_per_second_all_chips"] == pytest.approx(4 * 8 / seconds)
    assert {"parameters", "temporary_bytes", "hbm_bytes", "collectives", "compile_seconds"} <= set(plan)
    assert "tokens/s     at most" in decode_table(plan)
