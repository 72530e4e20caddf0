"""A model on tasks: numbers, files, and the example that an error names. The new task is the one of docs/tasks.md."""

import json
import re

import jax
import pytest
from flax.core import meta

from glm_jax.cli import evaluate
from glm_jax.evaluation import results
from glm_jax.evaluation.results import Options
from glm_jax.evaluation.run import evaluate_named
from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import GLM, init_params
from glm_jax.tasks.errors import TaskError
from tests.helpers.golden_tasks import DATA, ROOT, Words, needs_data


@pytest.fixture(scope="module")
def model():
    config = GLMConfig(1000, 1, 16, 2, 64, dtype="float32", init_std=0.3)
    return GLM(config), meta.unbox(init_params(config, jax.random.key(0)))


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(model, name, options=None, **more):
    return evaluate_named(*model, Words(), name, options or Options(length=32, overlap=8), **more)


def test_the_task_of_the_docs(model, tmp_path, monkeypatch):
    """Twenty lines in one file, and nothing else, make a task."""
    monkeypatch.chdir(tmp_path)
    block = re.findall(r"```python\n(.*?)```", (ROOT / "docs/tasks.md").read_text(), re.S)[0]
    assert block.count("\n") <= 20
    (tmp_path / "reviews.py").write_text(block)
    rows = [{"text": f"film {i}", "sentiment": ["negative", "positive"][i % 2]} for i in range(5)]
    write(tmp_path / "data/reviews/test.jsonl", rows)
    result = run(model, "reviews.py", Options(split="test"))
    assert (result.split, result.count) == ("test", 5)
    right = sum(row["prediction"] == row["label"] for row in result.predictions)
    assert result.numbers == {"accuracy": pytest.approx(100 * right / 5)}
    assert [row["label"] for row in result.predictions] == ["bad", "good", "bad", "good", "bad"]
    assert run(model, "reviews.py", Options(split="test", limit=2)).count == 2
    for size in (1, 3):
        other = run(model, "reviews.py", Options(split="test", batch_size=size))
        for a, b in zip(result.predictions, other.predictions, strict=True):
            assert a["scores"] == pytest.approx(b["scores"], abs=1e-5)
    results.write_results([result, other], "out", "runs/x")
    summary = json.loads((tmp_path / "out/results.json").read_text())
    facts = {"task": "reviews", "split": "test", "examples": 5, "checkpoint": "runs/x", "main_metric": "accuracy"}
    assert summary[0] == facts | result.numbers
    assert (tmp_path / "out/predictions-reviews-1.jsonl").exists()
    lines = (tmp_path / "out/predictions-reviews.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.predictions
    table = results.results_table([result])
    assert re.search(r"reviews +test +5 +accuracy +\d+\.\d\d", table)
    write(tmp_path / "data/reviews/test.jsonl", [*rows, {"text": "x", "sentiment": "mixed"}])
    with pytest.raises(TaskError, match="example test-6: label 'mixed' is not in the verbalizer, which knows negative"):
        run(model, "reviews.py", Options(split="test"))
    write(tmp_path / "data/reviews/test.jsonl", [{"body": "x", "sentiment": "negative"}])
    with pytest.raises(TaskError, match="example test-1: the pattern asks for 'text', but the fields are body"):
        run(model, "reviews.py", Options(split="test"))


def test_a_split_without_labels_keeps_its_predictions(model, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "BoolQ/test.jsonl", [{"question": "is it", "passage": "a b", "idx": i} for i in range(3)])
    result = run(model, "boolq", Options(split="test"), data_dir=str(tmp_path))
    assert (result.count, result.numbers, len(result.predictions)) == (3, {}, 3)
    assert "boolq, test: no example has a label" in caplog.text
    results.write_results([result], "out", "runs/x")
    assert len((tmp_path / "out/predictions-boolq.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 must be at least 1"),
        ({"limit": 0}, "limit 0 must be at least 1"),
        ({"length": -1}, "length -1 must be at least 1"),
        ({"head": "cls"}, "unknown head 'cls'; known: cloze, classifier"),
    ],
)
def test_options_that_cannot_be_used(options, message):
    with pytest.raises(TaskError, match=message):
        Options(**options)


def test_a_name_in_error_is_found_before_anything_is_opened():
    with pytest.raises(SystemExit, match="'boolqq' is not a SuperGLUE task"):
        evaluate.main(["--checkpoint", "no/such/run", "--tasks", "lambada:x.jsonl,boolqq"])


def test_labels_of_choices_are_numbers_of_choices(model, tmp_path):
    row = {"inputs_pretokenized": "a [MASK]", "choices_pretokenized": ["b", "c"]}
    for label in ("1", 2, -1):
        path = write(tmp_path / "choices.jsonl", [{**row, "label": label}])
        with pytest.raises(TaskError, match=r"line 1: label .* must be a choice's number, 0 to 1"):
            run(model, f"choices:{path}")


def test_language_modelling(model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i % 50}" for i in range(120)))
    result = run(model, f"lm:{text}")
    assert result.numbers["tokens"] == 119
    assert result.numbers["words"] == 119
    assert result.numbers["token_perplexity"] == pytest.approx(result.numbers["word_perplexity"])
    assert result.count == 13
    both = run(model, f"lm:{text}", Options(length=32, overlap=8, unidirectional=True))
    assert both.numbers["tokens"] == 119
    assert both.numbers["loss_per_token"] != result.numbers["loss_per_token"]
    assert run(model, f"wikitext:{text}").numbers["tokens"] == 119
    with pytest.raises(TaskError, match="length 100 is more than the model's 65 positions"):
        run(model, f"lm:{text}", Options(length=100))
    with pytest.raises(TaskError, match="lm needs a file"):
        run(model, "lm")


def test_lambada_and_choices(model, tmp_path):
    lambada = write(tmp_path / "lambada.jsonl", [{"text": "a b c"}, {"text": "a c b"}])
    result = run(model, f"lambada:{lambada}")
    assert result.count == 2
    assert result.numbers["accuracy"] == 50 * sum(row["right"] for row in result.predictions)
    write(lambada, [{"text": "a b"}, {"txt": ""}])
    with pytest.raises(TaskError, match="line 2: there is no text"):
        run(model, f"lambada:{lambada}")
    rows = [{"inputs_pretokenized": "x y", "choices_pretokenized": ["a", "b c"], "label": i} for i in (0, 1)]
    choices = write(tmp_path / "choices.jsonl", rows)
    assert run(model, f"choices:{choices}").numbers == {"accuracy": 50}
    assert run(model, f"choices:{choices}", Options(length=32, unidirectional=True)).numbers == {"accuracy": 50}


@needs_data
@pytest.mark.parametrize("task", ["cb:4", "copa:2", "rte", "boolq:1"])
def test_superglue(model, task):
    result = run(model, task, Options(limit=6), data_dir=str(DATA / "superglue"))
    assert result.count == 6
    assert 0 <= result.numbers["accuracy"] <= 100


@needs_data
@pytest.mark.parametrize("task", ["multirc", "record", "wsc:1", "wic:2"])
def test_fewglue(model, task):
    result = run(model, task, Options(limit=3, split="train"), data_dir=str(DATA / "fewglue"))
    assert result.count == 3
