"""Validation on many processes: each scores its share, and all get what one process would."""

import json
import subprocess
import sys

import numpy as np
import pytest

from glm_jax.distributed import processes
from glm_jax.evaluation.results import Options, Share
from glm_jax.evaluation.run import evaluate_task
from glm_jax.interop import from_pretrained
from glm_jax.tasks.task import find
from glm_jax.training.metric_writer import read_metrics
from glm_jax.tuning.run import finetune
from tests.helpers import two_processes
from tests.helpers.compiler_flags import fake_devices
from tests.helpers.crash_resume import ROOT, losses
from tests.helpers.tuning_runs import TOPICS, config


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["topics", "blank:0.4", "pairs"])
def test_shares_make_the_whole(place, name, monkeypatch):
    """Three processes, one after the other; the last hears what the others found."""
    loaded = from_pretrained(place / "pretrained")
    if name == "topics":
        task = find(str(_task_file(place)), str(place))
    else:
        task = find(f"pairs:{place}" if name == "pairs" else name, str(place))
        if name == "pairs":
            task = type(task)(task.name, task.source, task.layout, 32, 4, beams=2)
    said = []

    def gather(values):
        said.append(json.loads(json.dumps(values)))
        if len(said) < 3:
            raise InterruptedError("waits for the others")
        return said

    monkeypatch.setattr(processes, "allgather", gather)
    model = (loaded.model, loaded.params, loaded.tokenizer, task)
    whole = evaluate_task(*model, Options())
    assert not said
    for index in range(2):
        with pytest.raises(InterruptedError):
            evaluate_task(*model, Options(share=Share(index, 3)))
    last = evaluate_task(*model, Options(share=Share(2, 3)))
    assert [len(part) for part in said] == [4, 3, 3]
    assert (last.count, last.numbers) == (10, pytest.approx(whole.numbers))
    for ours, theirs in zip(last.predictions, whole.predictions, strict=True):
        assert ours.pop("scores", {}) == pytest.approx(theirs.pop("scores", {}), abs=1e-5)
        assert ours == theirs


def _task_file(place):
    file = place / "topics_task.py"
    file.write_text(f"task = { ({**TOPICS, 'path': str(place / '{split}.jsonl')})!r}\n")
    return file


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_hosts_fine_tune_as_one(place, method):
    tasks = ({**TOPICS, "path": str(place / "{split}.jsonl")}, "blank:0.4")
    one = finetune(config(place, *tasks, method=method), str(place / f"one-{method}"))
    file = place / "two.py"
    file.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import pathlib\nfrom tests.helpers import tuning_runs\n"
        f"def get_config():\n    place = pathlib.Path({str(place)!r})\n"
        f"    return tuning_runs.config(place, *{tasks!r}, method={method!r})\n"
    )
    address = two_processes.free_address()
    command = [sys.executable, "-m", "glm_jax", "finetune", f"--config={file}", f"--workdir={place / f'two-{method}'}"]
    processes = [
        subprocess.Popen(
            [*command, f"--hosts={address},2,{i}"], cwd=ROOT, env=fake_devices(2), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for i in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    ours, theirs = losses(place / f"two-{method}"), losses(place / f"one-{method}")
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-4)
    two = json.loads((place / f"two-{method}" / "test.json").read_text())
    for task, numbers in one.items():
        assert two[task]["examples"] == 10
        first = next(name for name in numbers if name not in ("split", "examples"))
        assert two[task][first]["mean"] == pytest.approx(numbers[first]["mean"], abs=1e-3)
    logs = [read_metrics(place / name / "metrics.jsonl") for name in (f"one-{method}", f"two-{method}")]
    scores = [[line["validation_score"] for line in log if "validation_score" in line] for log in logs]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
