"""Tasks from names, settings and files."""

import json

import pytest

from glm_jax.tasks import metrics
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import read
from glm_jax.tasks.task import find, from_settings, named_template, written_pattern
from glm_jax.tasks.templates import MASK, Truncatable, TruncateLast
from tests.helpers.golden_tasks import Words


def test_written_patterns():
    parts = written_pattern("News: {title} {body!q} Topic: [MASK].")({"title": "T", "body": "B", "other": 1})
    assert parts == ["News:", " T", " B", " Topic:", MASK, "."]
    assert [type(part) for part in parts] == [str, Truncatable, TruncateLast, str, type(MASK), str]
    assert written_pattern("{a}[MASK] {{x}}")({"a": "A"}) == ["A", MASK, " {x}"]
    assert written_pattern("[MASK] {a}")({"a": "A"}) == [MASK, " A"]
    with pytest.raises(TaskError, match=r"needs one \[MASK\], but 'x' has 0"):
        written_pattern("x")
    with pytest.raises(TaskError, match="asks for 'body', but the fields are title, text"):
        written_pattern("{body} [MASK]")({"title": 1, "text": 2})
    with pytest.raises(TaskError, match="cannot be read"):
        written_pattern("{a [MASK]")


@pytest.fixture
def settings(tmp_path):
    rows = [{"text": "good film", "label": 1}, {"text": "bad film", "label": 0}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "name": "reviews",
        "path": str(tmp_path / "{split}.jsonl"),
        "pattern": "{text} It was [MASK].",
        "verbalizer": {0: " bad", 1: " good"},
    }


def test_from_settings(settings):
    task = from_settings({**settings, "max_length": 32})
    assert task.max_length == 32
    examples = read(task.source, "test")
    assert [task.template.label_index(e.label, e.fields) for e in examples] == [1, 0]
    (row,) = task.encoder(Words(), 512).encode(task.template, examples[0].fields)
    assert row.target_index == (row.prefix_length,) * 2
    assert task.encoder(Words(), 512).max_length == 32


def test_the_old_name_of_the_metric(settings):
    assert from_settings({**settings, "score": "f1"}).metric is metrics.METRICS["f1"]
    assert from_settings({**settings, "metric": "f1"}).metric is metrics.METRICS["f1"]
    with pytest.raises(TaskError, match="score and metric of a task mean the same"):
        from_settings({**settings, "score": "f1", "metric": "cb"})


@pytest.mark.parametrize(
    ("change", "message"),
    [({"verbaliser": {}}, "unknown key 'verbaliser' in a task; nearest: verbalizer"),
     ({"prompt": "boolq"}, "either a pattern or the name of a prompt"),
     ({"metric": "bleu"}, "unknown metric 'bleu'; known: accuracy"),
     ({"tfds": "x"}, "one of path, tfds, hub and task, not path and tfds"), ({"path": "x.parquet"}, "none of .jsonl"),
     ({"columns": ["text"]}, "columns are of tables"),
     ({"name": ""}, "needs a name"), ({"verbalizer": None}, "either a verbalizer or candidates")],
)  # fmt: skip
def test_bad_settings(settings, change, message):
    with pytest.raises(TaskError, match=message):
        from_settings({**settings, **change})


def test_find(tmp_path, settings):
    assert find("cb:4", str(tmp_path)).template.verbalizer["neutral"] == " neither"
    with pytest.raises(TaskError, match="cb has no pattern 5; it has 0 to 4"):
        find("cb:5")
    with pytest.raises(TaskError, match="'sst' is not a SuperGLUE task"):
        find("sst")
    with pytest.raises(TaskError, match="write TASK:PATTERN"):
        find("cb:x")
    with pytest.raises(TaskError, match="no prompt is named 'agnew'; nearest: agnews"):
        named_template("agnew")
    file = tmp_path / "mine.py"
    file.write_text(f"task = {settings!r}\n")
    assert find(str(file)).name == "reviews"
    file.write_text("tusk = 1\n")
    with pytest.raises(TaskError, match="defines no `task`"):
        find(str(file))


def test_labels_that_are_true_or_false(settings, tmp_path):
    rows = [{"text": "good film", "label": True}, {"text": "bad film", "label": False}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = from_settings({**settings, "verbalizer": {False: " bad", True: " good"}})
    assert [task.template.label_index(e.label, e.fields) for e in read(task.source, "test")] == [1, 0]
