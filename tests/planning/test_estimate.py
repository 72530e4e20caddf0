"""Plans against what can be worked out by hand, and against goldens. Compiles with libtpu; there is no TPU."""

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from glm_jax.distributed import sharding
from glm_jax.distributed.mesh import choose_mesh_shape, make_mesh
from glm_jax.planning import estimate, hlo, remedies, topologies
from glm_jax.planning.table import table
from tests.helpers import plan_summaries
from tests.helpers.paths import ROOT


def _compiled(function, *shapes, mesh, specs):
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    return jax.jit(function, out_shardings=sharding.replicated(mesh)).lower(*arguments).compile().as_text()


@pytest.fixture(scope="module")
def four():
    chip, devices = topologies.devices("v5e:2x2")
    return chip, make_mesh({"fsdp": 4}, devices)


@plan_summaries.needs_libtpu
def test_products_in_a_loop_are_counted_as_often_as_it_runs(four):
    def function(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    mesh = four[1]
    text = _compiled(
        function, (256, 512), (7, 512, 512), mesh=mesh, specs=[PartitionSpec("fsdp"), PartitionSpec(None, "fsdp")]
    )
    counts = hlo.count(text, 4)
    assert counts.unknown_loops == []
    assert counts.flops == 7 * 2 * (256 / 4) * 512 * 512
    gathered = [c for c in counts.collectives if c.kind == "all-gather" and (1, 512, 512) in c.shapes]
    assert sum(c.times * c.bytes for c in gathered) == 7 * 512 * 512 * 2 * 3 / 4


@plan_summaries.needs_libtpu
def test_batched_products_are_counted_without_their_padding(four):
    """On TPU they become convolutions with holes, whose naive size is far larger."""
    text = _compiled(
        lambda q, k: jnp.einsum("bqnh,bknh->bnqk", q, k), (8, 128, 4, 64), (8, 128, 4, 64), mesh=four[1],
        specs=[PartitionSpec("fsdp")] * 2,
    )  # fmt: skip
    assert hlo.count(text, 4).flops == 2 * (8 / 4) * 4 * 128 * 128 * 64


@plan_summaries.needs_libtpu
def test_traffic_of_a_copy_in_a_loop_is_that_of_its_slices(four):
    def function(x):
        return jax.lax.map(lambda row: row * 2, x)

    mesh = four[1]
    arguments = jax.ShapeDtypeStruct((64, 1024, 8192), jnp.float32, sharding=sharding.replicated(mesh))
    counts = hlo.count(jax.jit(function).lower(arguments).compile().as_text(), 4)
    size = 64 * 1024 * 8192 * 4
    assert 2 * size <= counts.hbm_bytes < 3.1 * size  # XLA may clear the result first


def test_traffic_and_groups_of_written_hlo():
    text = """HloModule small

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

ENTRY %main (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0} parameter(0)
  %n = f32[8,128]{1,0:T(8,128)S(1)} negate(%p)
  %r = f32[8,128]{1,0} all-reduce(%n), replica_groups=[2,2]<=[2,2]T(1,0), to_apply=%sum
  ROOT %q = f32[8,128]{1,0} collective-permute(%r), source_target_pairs={{0,1},{1,0}}
}
"""
    counts = hlo.count(text, 4)
    assert [c.groups for c in counts.collectives] == [((0, 2), (1, 3)), ((0, 1),)]
    assert counts.by_kind() == {"all-reduce": 2 * 4096 / 2, "collective-permute": 4096}
    assert counts.hbm_bytes == 4096 + 4096 + 2 * 4096  # the negated array stays in fast memory


def test_a_part_on_its_way_to_fast_memory_is_read_alone():
    """As libtpu writes it for arrays that do not fit there whole; the array itself is not read again for every part."""
    text = """HloModule parts

ENTRY %main (p: f32[8,128]) -> f32[2,128] {
  %p = f32[8,128]{1,0} parameter(0)
  %first = ((f32[8,128]{1,0}), f32[2,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:2], [0:128]}
  %a = f32[2,128]{1,0:T(8,128)S(1)} slice-done(%first)
  %second = ((f32[8,128]{1,0}), f32[2,128]{1,0}, s32[]{:S(2)}) slice-start(%p), slice={[2:4], [0:128]}
  %b = f32[2,128]{1,0} slice-done(%second)
  ROOT %q = f32[2,128]{1,0} add(%a, %b)
}
"""
    part = 2 * 128 * 4
    assert hlo.count(text, 1).hbm_bytes == part + 2 * part + 2 * part  # the sum reads %b there, and is written


def test_interconnect_uses_the_dimensions_that_a_group_spans():
    @dataclasses.dataclass
    class Device:
        coords: tuple
        slice_index: int = 0

    def seconds(group, size, chip):
        devices = [Device((x, y, z)) for x in range(size) for y in range(size) for z in range(size)]
        return estimate.interconnect_seconds(hlo.Collective("all-gather", 6e9, 6e9, (group,), 1, ()), chip, devices)

    v5p, _ = topologies.parse("v5p:2x2x1")
    assert seconds((0, 1, 2, 3), 4, v5p) == 6e9 / 200e9  # a ring in one dimension: two links
    assert seconds((0, 1), 4, v5p) == 6e9 / 100e9  # two of four neighbours: one link
    assert seconds(tuple(range(64)), 4, v5p) == 6e9 / 600e9
    assert seconds((0, 1), 2, v5p) == 6e9 / 100e9  # too short to go round


@plan_summaries.needs_libtpu
@pytest.mark.parametrize("name", list(plan_summaries.CASES)[:1])
@pytest.mark.thorough
def test_shardings_and_collectives_are_the_golden_ones(name):
    _assert_golden(name)


@plan_summaries.needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("name", list(plan_summaries.CASES)[1:])
def test_more_shardings_and_collectives_are_the_golden_ones(name):
    _assert_golden(name)


@plan_summaries.needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "mfu"), [("v5p:4x4x4", 0.65), ("v4:4x4x4", 0.6), ("v5e:16x16", 0.6), ("v6e:8x8", 0.6)]
)
def test_ten_billion_parameters_fit_and_run_fast(topology, mfu):
    """GLM-10B by its config, 2,048 rows of 1,024 tokens a step. Minutes and 10 GB of memory each."""
    config = plan_summaries.ten_billion()
    libtpu = tuple(map(int, importlib.metadata.version("libtpu").split(".")))
    if topology.startswith("v6e") and libtpu < (0, 0, 50):
        config.model.attention_dropout = 0.0  # 0.0.42 crashes there while it compiles this config's attention dropout
    plan = estimate.plan(config, topology)
    assert plan["headroom"] >= 0.1
    assert plan["temporary_bytes"] < 20e9
    assert plan["largest_replicated_parameter_bytes"] < 1e6
    assert plan["gathered_activation_bytes"] == 0
    assert plan["mfu_bound"] >= mfu
    assert plan["uncounted_loops"] == 0


def _assert_golden(name):
    if not plan_summaries.path().exists():
        pytest.skip(f"no golden plans for libtpu {importlib.metadata.version('libtpu')}: see plan_summaries.py")
    assert plan_summaries.summary(name) == json.loads(plan_summaries.path().read_text())[name]


@pytest.mark.parametrize(
    ("topology", "slices", "message"),
    [
        ("v5e:3x2", 1, "'v5e:3x2' does not exist; v5e comes as 2x2, 2x4, 4x4"),
        ("v5p:4x4", 1, "does not exist; v5p comes as 2x2x1.* 4x4x4"),
        ("v9:2x2", 1, "no chip 'v9'; there are v4, v5e, v5p, v6e, tpu7x"),
        ("v5e:2x2", 0, "slices = 0: give at least 1"),
    ],
)
def test_what_does_not_exist_is_refused(topology, slices, message):
    with pytest.raises(ValueError, match=message):
        topologies.devices(topology, slices)


def test_another_libtpu_is_refused(monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1" if name == "libtpu" else real(name))
    with pytest.raises(topologies.PlanningError, match=r"libtpu 0.0.1 does not belong to jax .*pip install 'libtpu=="):
        topologies.devices("v5e:2x2")


def test_a_missing_libtpu_is_named(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "libtpu":
            raise importlib.metadata.PackageNotFoundError
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(topologies.PlanningError, match=r"not installed; install it: pip install 'libtpu==[\d.]+\*'"):
        topologies.devices("v5e:2x2")


def test_jax_names_its_libtpu():
    assert topologies.required_libtpu(["numpy", 'libtpu==0.0.42.*; extra == "tpu"']) == "0.0.42.*"


@plan_summaries.needs_libtpu
def test_mesh_and_batch_are_checked_before_compiling():
    config = plan_summaries.config({"mesh.data": 3})
    with pytest.raises(ValueError, match=r"data=3 .* does not fit 4 devices"):
        estimate.compile_step(config, "v5e:2x2")
    config = plan_summaries.config({"mesh.fsdp": 4, "batch_size": 6})
    with pytest.raises(ValueError, match="multiple of the 4 batch shards; take 8"):
        estimate.compile_step(config, "v5e:2x2")
    config = plan_summaries.config({"mesh.tensor": 4, "model.num_heads": 2})
    with pytest.raises(ValueError, match=r"'heads'. of size 2 cannot be split over tensor=4"):
        estimate.compile_step(config, "v5e:2x2")


@plan_summaries.needs_libtpu
def test_auto_mesh_splits_parameters_as_far_as_memory_needs():
    devices = topologies.devices("v5p:4x4x4")[1]
    few, why = choose_mesh_shape(devices, 4096, state_bytes=120e9)
    assert few == {"data": 2, "fsdp": 32, "tensor": 1}
    assert "take 4 % of its memory" in why
    assert choose_mesh_shape(devices, 4096, state_bytes=3e12)[0]["fsdp"] == 64
    assert choose_mesh_shape(devices, 4096, state_bytes=1e9)[0] == {"data": 64, "fsdp": 1, "tensor": 1}
    flat = topologies.devices("v6e:8x8")[1]
    assert dict(make_mesh("auto", flat, 4096, 120e9).shape) == {"data": 2, "fsdp": 32, "tensor": 1}


@plan_summaries.needs_libtpu
def test_what_would_fit_is_found_by_trying(monkeypatch):
    """The chip is shrunk until the step does not fit, but half of it would."""
    config = plan_summaries.config({"mesh.fsdp": 4, "model.remat": "none"})
    peaks = {"none 1": 30e9, "full 1": 20e9, "full 2": 10e9}
    compiled = []

    def compile_step(config, topology, slices):
        compiled.append(f"{config.model.remat} {config.grad_accumulation_steps}")
        return compiled[-1]

    def describe(step, topology, slices):
        return {"fits": peaks[step] < 16e9, "peak_bytes": peaks[step]}

    monkeypatch.setattr(remedies, "compile_step", compile_step)
    monkeypatch.setattr(remedies, "describe", describe)
    tried = remedies.remedies(config, "v5e:2x2", enough=1)
    assert compiled == ["full 1", "full 2"]
    assert [t["fits"] for t in tried] == [False, True]
    assert tried[1]["change"] == "--config.model.remat=full --config.grad_accumulation_steps=2"


@plan_summaries.needs_libtpu
@pytest.mark.thorough
def test_the_verb_prints_json_and_one_line_errors(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom tests.helpers import plan_summaries\n"
        "def get_config():\n    return plan_summaries.config({'model.num_layers': 2, 'model.hidden_size': 128})\n"
    )
    command = [sys.executable, "-m", "glm_jax", "plan", f"--config={config}", "--json"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    done = subprocess.run([*command, "--topology=v5e:2x2"], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    plan = json.loads(done.stdout.splitlines()[-1])
    assert plan["chips"] == 4
    assert plan["fits"]
    assert plan["peak_bytes"] >= plan["argument_bytes"] + plan["temporary_bytes"]
    assert plan["headroom"] == pytest.approx(1 - plan["peak_bytes"] / plan["hbm_bytes"])
    assert set(plan["roofline_seconds"]) == {"compute", "hbm", "interconnect"}
    assert plan["roofline_seconds"]["compute"] == pytest.approx(plan["flops_per_step"] / 197e12)
    assert 0 < plan["mfu_bound"] < 1
    assert plan["tokens_per_second"] == pytest.approx(32 * 64 / 4 / plan["seconds_per_step_bound"])
    assert plan["days"] == pytest.approx(10 * plan["seconds_per_step_bound"] / 86400)
    assert {"parameters", "collectives", "compile_seconds", "useful_flops_per_step"} <= set(plan)
    shown = table(plan)
    assert "MFU" in shown
    assert "DOES NOT FIT" not in shown
    failed = subprocess.run([*command, "--topology=v5e:3x2"], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1].startswith("ValueError: topology 'v5e:3x2' does not exist")


@pytest.mark.parametrize(
    ("message", "gigabytes"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.", 20.5),
        ("the total memory required for HLO temporaries (32.88G) exceeds available HBM (15.75G).", 33.88),
        ("RESOURCE_EXHAUSTED", 16),
    ],
)
def test_what_the_compiler_wants_is_read(message, gigabytes):
    needed = estimate.needed_bytes(message, 2.0**30, 16 * 2.0**30)
    assert needed == pytest.approx(gigabytes * 2.0**30)


def test_a_plan_that_does_not_fit_says_what_would():
    plan = {
        "topology": "v5e:2x2", "chips": 4, "mesh": {"data": 4}, "batch_size": 8, "grad_accumulation_steps": 1,
        "remat": "none",
        "parameters": 10**9, "argument_bytes": 3e9, "temporary_bytes": 20e9, "peak_bytes": 23e9, "hbm_bytes": 17e9,
        "headroom": 1 - 23 / 17, "fits": False, "compile_seconds": 1.0,
        "remedies": [{"change": "--config.model.remat=full", "fits": True, "peak_bytes": 9e9}],
    }  # fmt: skip
    shown = table(plan)
    assert "DOES NOT FIT" in shown
    assert "--config.model.remat=full: fits, peak 9.00 GB" in shown
    assert np.isfinite(plan["headroom"])
