"""What a run measures of itself."""

import contextlib
import logging
import time
import types

import jax
import numpy as np
import pytest

from glm_jax.distributed import accelerators
from glm_jax.training import metrics
from glm_jax.training.metric_writer import MetricWriter, read_metrics
from glm_jax.training.metrics import NonFiniteError, StepMetrics
from glm_jax.training.profiling import Profile
from glm_jax.training.train_step import LossSums


def _metrics(loss=1.0):
    sums = LossSums(loss=np.ones((3, 2)), weight=np.ones((3, 2)), correct=np.zeros(()), raw_tokens=np.float32(100))
    return {"loss": np.float32(loss), "grad_norm": np.float32(1), "learning_rate": np.float32(0.1), "sums": sums}


def test_mfu_is_useful_work_over_the_peak_of_all_chips(monkeypatch):
    monkeypatch.setattr(metrics, "accelerator_of", lambda device: accelerators.ACCELERATORS[0])
    measured = StepMetrics()
    measured.flops_per_token = 275e12 / 1000
    clock = [0.0]  # of its own: a busy machine sleeps longer than it was told
    monkeypatch.setattr(metrics, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    measured.restart()
    for step in (1, 2):
        clock[0] += 0.05
        measured.add(step, _metrics())
    values, seconds = measured.close(), clock[0]
    # 200 tokens of a thousandth of a second of work each, on one chip
    assert values["mfu"] == pytest.approx(0.2 / seconds, rel=0.05)
    assert values["tokens_per_second"] == pytest.approx(200 / seconds, rel=0.05)


def test_mfu_of_an_unknown_chip_is_none():
    measured = StepMetrics()  # a CPU
    measured.flops_per_token = 1e9
    measured.add(1, _metrics())
    values = measured.close()
    assert values["mfu"] is None
    assert "peak_memory_bytes" not in values


def test_percentiles_are_of_single_steps_without_what_is_excluded(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    measured = StepMetrics()
    for step in range(1, 101):
        now[0] += 1.0 if step < 99 else 5.0
        measured.add(step, _metrics())
        if step == 50:
            with measured.paused():
                now[0] += 1000.0
    values = measured.close()
    assert values["step_seconds_p50"] == 1.0
    assert values["step_seconds_p95"] == 1.0
    assert values["step_seconds_p99"] == pytest.approx(5.0)
    assert values["seconds_per_step"] == pytest.approx(1.08)


def test_compilations_are_counted():
    measured = StepMetrics()
    measured.add(1, _metrics())
    before = measured.close()["compilations"]
    function = jax.jit(lambda x: x * 3 + 1)
    for _ in range(3):
        function(np.ones(7, np.float32)).block_until_ready()
    measured.add(2, _metrics())
    assert measured.close()["compilations"] == before + 1


def test_a_resume_cuts_what_was_logged_later(tmp_path):
    texts = {step: f"- a **[{step}]** b\n## no heading of ours" for step in (4, 8)}
    with contextlib.closing(MetricWriter(tmp_path, start=0, total=10)) as writer:
        for step, text in texts.items():
            writer.metrics(step, {"loss": float(step)})
            writer.sample(step, text)
    for start in (5, 5, 0):
        MetricWriter(tmp_path, start=start, total=10).close()
        kept = [step for step in texts if step <= start]
        assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == kept
        assert (tmp_path / "samples.md").read_text() == "".join(f"## step {s}\n\n{texts[s]}\n\n" for s in kept)


def test_what_is_no_number_names_its_step():
    with pytest.raises(NonFiniteError, match="loss is nan at step 7"):
        StepMetrics().add(7, _metrics(loss=np.nan))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("cpu", None),
    ],
)
def test_chips_by_the_name_that_jax_gives(kind, name):
    found = accelerators.accelerator_of(types.SimpleNamespace(device_kind=kind))
    assert (found and found.name) == name


@pytest.mark.parametrize("text", ["10:15", "steps=15:10", "steps=0:5", "steps=5"])
def test_a_profile_needs_steps(text, tmp_path):
    with pytest.raises(ValueError, match="must be steps=FIRST:LAST"):
        Profile(text, tmp_path)


def test_a_profile_of_steps_that_do_not_come_is_refused(tmp_path):
    profile = Profile("steps=10:15", tmp_path)
    profile.check(0, 15)
    for start, total in ((0, 14), (10, 20)):
        with pytest.raises(ValueError, match=f"takes the steps {start + 1} to {total}"):
            profile.check(start, total)
    Profile(None, tmp_path).check(10, 12)


def test_a_profile_writes_what_xprof_reads(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    profile = Profile("steps=2:3", tmp_path)
    function = jax.jit(lambda x: x + 1)
    for step in (1, 2, 3, 4):
        profile.before(step)
        profile.after(step, function(step))
        assert bool(list(tmp_path.rglob("*.xplane.pb"))) == (step >= 3)
    assert "trace of step 2 to 3: xprof" in caplog.text


def test_steps_that_are_over_when_the_clock_starts_count_with_their_loss_only(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    measured = StepMetrics()
    now[0] = 60.0  # the first step compiled
    measured.restart(untimed=1)
    measured.add(1, _metrics())
    for step in (2, 3):
        now[0] += 2.0
        measured.add(step, _metrics())
    values = measured.close()
    assert values["tokens_per_second"] == pytest.approx(200 / 4.0)
    assert values["seconds_per_step"] == pytest.approx(2.0)
    assert values["step_seconds_p50"] == pytest.approx(2.0)
    assert values["targets_per_token"] == pytest.approx(18 / 300)
