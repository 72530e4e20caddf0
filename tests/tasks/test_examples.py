"""Sources: files, folders, TFDS; and what they say of bad ones."""

import json

import pytest

from glm_jax.tasks import superglue
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import hub, jsonl, parallel, read, spread, table, tfds
from tests.helpers.golden_tasks import DATA, needs_data


def write(path, lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_some_examples_are_spread_over_the_split():
    numbers = spread(lambda split: iter(range(10)), 4)
    assert list(numbers("train")) == [0, 2, 5, 7]
    assert list(spread(lambda split: iter(range(3)), 4)("train")) == [0, 1, 2]
    with pytest.raises(TaskError, match="has no examples"):
        read(spread(lambda split: iter(()), 4), "train")


def test_jsonl(tmp_path):
    write(tmp_path / "train.jsonl", [{"title": "x", "topic": 3}, "\n", {"title": "y", "topic": 1}])
    source = jsonl(str(tmp_path / "{split}.jsonl"), label="topic", fields={"a": "title"})
    examples = read(source, "train")
    assert [(e.id, e.fields["a"], e.label) for e in examples] == [("train-1", "x", 3), ("train-3", "y", 1)]
    assert len(read(source, "train", limit=1)) == 1
    with pytest.raises(TaskError, match=r"there is no file .*validation.jsonl: .* holds train.jsonl"):
        read(source, "validation")


def test_bad_lines_are_named(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"label": 1}, "{oops\n"])
    with pytest.raises(TaskError, match=r"x\.jsonl, line 2: not JSON"):
        read(jsonl(path), "train")
    with pytest.raises(TaskError, match="line 1: there is no field 'topic'; there are label"):
        read(jsonl(path, label="topic"), "train")
    with pytest.raises(TaskError, match="line 1: a list where an object is expected"):
        read(jsonl(write(tmp_path / "y.jsonl", ["[1]\n"])), "train")
    with pytest.raises(TaskError, match="split 'train' has no examples"):
        read(jsonl(write(tmp_path / "z.jsonl", ["\n"])), "train")
    (tmp_path / "w.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(TaskError, match="not UTF-8"):
        read(jsonl(str(tmp_path / "w.jsonl")), "train")


def test_tables(tmp_path):
    tsv = write(tmp_path / "train.tsv", ["sentence\tlabel\n", 'say "x\t1\n'])
    assert read(table(tsv), "train")[0].fields == {"sentence": 'say "x', "label": "1"}
    csv = write(tmp_path / "train.csv", ['"3","a, b","c ""d"""\n'])
    example = read(table(csv, columns=("label", "a", "b")), "train")[0]
    assert (example.label, example.fields["a"], example.fields["b"]) == ("3", "a, b", 'c "d"')
    with pytest.raises(TaskError, match=r"train\.csv, line 1: 3 cells for 2 columns"):
        read(table(csv, columns=("label", "a")), "train")


def test_parallel(tmp_path):
    write(tmp_path / "val.source", ["a\n", "b\n"])
    write(tmp_path / "val.target", ["c\n", "d\n"])
    examples = read(parallel(str(tmp_path)), "validation")
    assert examples[1].fields == {"source": "b", "target": "d"}
    write(tmp_path / "val.target", ["c\n"])
    with pytest.raises(TaskError, match=r"has 2 lines, but \.target has 1"):
        read(parallel(str(tmp_path)), "validation")


def test_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="knows no dataset 'no_such_set'"):
        read(tfds("no_such_set", str(tmp_path)), "train")
    try:
        import datasets  # noqa: F401
    except ImportError:
        with pytest.raises(TaskError, match="pip install datasets"):
            read(hub("ag_news"), "train")


def test_tfds(tmp_path):
    import tensorflow_datasets  # noqa: F401

    from glm_jax.data.bible import Bible

    Bible(config="web", data_dir=str(tmp_path / "tfds"), file_format="array_record").download_and_prepare()
    example = read(tfds("bible/web", str(tmp_path), label=None), "train", limit=1)[0]
    assert isinstance(example.fields["text"], str)


def test_superglue_corrections(tmp_path):
    (tmp_path / "WSC").mkdir()
    target = {"span1_index": 0, "span1_text": "Mark", "span2_index": 2, "span2_text": "He"}
    rows = [
        {"idx": 0, "text": "Mark said. He\u2019s late", "target": target, "label": True},
        {"idx": 1, "text": "Mark said , He is", "target": target, "label": True},
        {"idx": 2, "text": "x y He", "target": target, "label": False},
    ]
    write(tmp_path / "WSC" / "train.jsonl", rows)
    write(tmp_path / "WSC" / "val.jsonl", rows)
    source = superglue.source("wsc", str(tmp_path))
    found = [(e.fields["text"], e.label) for e in read(source, "train")]
    assert found == [("Mark said. *He* 's late", 0), ("Mark said , *He* is", 0)]
    assert [(e.label, e.fields["label"]) for e in read(source, "validation")] == [(0, True), (0, True), (None, False)]
    (tmp_path / "COPA").mkdir()
    write(tmp_path / "COPA" / "train.jsonl", [{"idx": 0, "choice1": "a", "choice2": "b", "label": 0}])
    mirrored = read(superglue.source("copa", str(tmp_path)), "train")
    assert [(e.id, e.fields["choice1"], e.label) for e in mirrored] == [("train-0", "a", 0), ("train-0m", "b", 1)]
    write(tmp_path / "WSC" / "val.jsonl", [{"idx": 0}])
    with pytest.raises(TaskError, match=r"val.jsonl, line 1: not an example of wsc \(KeyError: 'target'\)"):
        read(source, "validation")
    with pytest.raises(TaskError, match="'wnli' is not a SuperGLUE task"):
        superglue.source("wnli", str(tmp_path))
    with pytest.raises(TaskError, match="no split 'dev'; it has train"):
        read(source, "dev")


@needs_data
def test_real_folders():
    counts = {}
    for task in superglue.FOLDERS:
        if task.startswith("ax"):
            continue
        counts[task] = len(read(superglue.source(task, str(DATA / "fewglue")), "train"))
    assert {k: counts[k] for k in ("rte", "cb", "boolq", "wic", "copa")} == {
        "rte": 32, "cb": 32, "boolq": 32, "wic": 32, "copa": 64,
    }  # fmt: skip
    assert counts["multirc"] > 32
    boolq = read(superglue.source("boolq", str(DATA / "superglue")), "validation")
    assert len(boolq) == 1635
    assert {e.label for e in boolq} == {True, False}
    record = read(superglue.source("record", str(DATA / "fewglue" / "ReCoRD")), "train")
    assert all(e.fields["candidates"][0] in e.fields["answers"] and len(e.fields["candidates"]) <= 10 for e in record)
