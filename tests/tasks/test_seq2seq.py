"""Sequence to sequence against the original's rows; readers; what is lost and what is not."""

# ruff: noqa: RUF001 (Chinese punctuation)

import dataclasses
import json

import pytest

from glm_jax.data.bible import HELD_OUT_BOOKS
from glm_jax.evaluation import baselines, generation
from glm_jax.evaluation.results import Options
from glm_jax.model.config import GLMConfig
from glm_jax.tasks import seq2seq
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example, read
from glm_jax.tasks.infilling import InfillingTask, infilling_source
from glm_jax.tasks.task import find
from tests.helpers.golden_tasks import Words, assert_equal, load, needs_vocabularies, tokenizer
from tests.helpers.paths import ROOT

RECORDS = load("seq2seq_samples.json")
NAMES = {"ids": "text", "sep": "attention_mask", "targets": "target"}
COPY = 40.94  # BLEU of the King James Version as it is, on the test split
FOOTBALL = "Super Bowl 50 was an American football game to determine the champion of the NFL for the 2015 season. " * 3
PAIRS = {
    "customization/train/0": {"source": "a b c d e " * 8 + "a b c d e", "target": "the target"},
    "customization/train/1": {"source": "short source", "target": "x"},
    "customization/test/0": {"source": "a b c", "target": ""},
    "customization/test/1": {"source": "q", "target": ""},
    "squad_generation/train/0": {"context": FOOTBALL, "answer": "Super Bowl 50", "target": "Which game was it?"},
    "cmrc/train/0": {
        "context": "《战国无双3》是由光荣和ω-force开发的战国无双系列的正统第三续作。",
        "question": "《战国无双3》是由哪两个公司合作开发的？",
        "target": "光荣和ω-force",
    },
}
LAYOUTS = {
    "gigaword": seq2seq.content, "cnn_dm": seq2seq.content, "cnn_dm_original": seq2seq.content,
    "customization": seq2seq.continuation, "squad_generation": seq2seq.question, "cmrc": seq2seq.chinese_answer,
}  # fmt: skip


def name_of(record):
    return "/".join(record["name"].split("/")[:3])


def cases(keep):
    chosen = [(i, record) for i, record in enumerate(RECORDS) if keep(record)]
    return [pytest.param(r, id=f"{i}-{r['name']}-{r['tokenizer']}") for i, r in chosen]


def cut(sample, encoded):
    """The original fills Part B with padding, positions counted on; what is used must be equal."""
    n = len(encoded)
    listed = {key: value[:n] for key, value in sample.items() if isinstance(value, list)}
    return {**sample, **listed, "position_id": [line[:n] for line in sample["position_id"]]}


@needs_vocabularies
@pytest.mark.parametrize("record", cases(lambda r: not r["name"].startswith("blank") and "mask_pad1" not in r["name"]))
def test_golden(record):
    args, sample = record["args"], record["sample"]
    tokens = tokenizer(record["tokenizer"], args["task_mask"])
    fields = PAIRS.get(name_of(record), record)
    lengths = args["src_seq_length"], args["tgt_seq_length"]
    task = seq2seq.Seq2SeqTask("x", lambda split: (), LAYOUTS[args["task"]], *lengths)
    training = "target" in sample
    encoded = task.encode(tokens, Example("x", fields), training=training, pad_context=True)
    used = cut(sample, encoded)
    assert set(sample["text"][len(encoded) :]) <= {tokens.special.end, tokens.special.pad}  # the end token as an input
    assert_equal(encoded, used, pad=tokens.special.pad, mask="loss_mask" if training else None, **NAMES)


@needs_vocabularies
@pytest.mark.parametrize("record", cases(lambda r: "mask_pad1" in r["name"]))
def test_context_without_padding_is_what_the_original_masks(record):
    """Our Part A ends where the original's 4-D mask ends; the rest of the row is the same."""
    args, sample = record["args"], record["sample"]
    tokens = tokenizer(record["tokenizer"], True)
    task = seq2seq.Seq2SeqTask(
        "x", lambda split: (), seq2seq.continuation, args["src_seq_length"], args["tgt_seq_length"]
    )
    encoded = task.encode(tokens, Example("x", PAIRS[name_of(record)]), training="target" in sample)
    seen = sample["attention_mask"][0][0]
    assert encoded.prefix_length == sum(seen[: args["src_seq_length"]])
    columns = [i for i, visible in enumerate(seen) if visible] + list(
        range(args["src_seq_length"], len(sample["text"]))
    )
    for name, values in (("tokens", sample["text"]), ("position_ids", sample["position_id"][0])):
        assert getattr(encoded, name) == [values[i] for i in columns][: len(encoded)]


def test_lengths_that_the_model_does_not_hold_are_cut():
    task = seq2seq.pairs("mine", "nowhere")
    small = GLMConfig(1000, 1, 16, 2, 64)
    assert dataclasses.astuple(seq2seq.fitted(task, small))[3:5] == (65, 63)
    assert seq2seq.fitted(task, GLMConfig(1000, 1, 16, 2, 1024)) == task


@pytest.mark.parametrize("content", ['{"data": [{"paragraphs": [{"qas": []}, {"context": "a"}]}]}', '{"data"', "[]"])
def test_squad_files_of_another_form_are_named(tmp_path, content):
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(TaskError, match=r"train.json is not in SQuAD's format"):
        read(seq2seq.squad_source(str(tmp_path)), "train")


def test_source_and_target_lengths():
    words = Words()
    task = seq2seq.pairs("mine", "nowhere", source_length=8, target_length=3)
    encoded = task.encode(words, Example("x", {"source": "a b c d e f g h", "target": "k l m n"}))
    assert encoded.tokens[1:6] == words.encode("d e f g h")
    assert list(encoded.target_ids) == words.encode("k l m")
    assert len(encoded) == 8 + 3


@needs_vocabularies
def test_wordpiece_is_compared_in_one_writing():
    """What the model wrote, token by token, and the reference as it stands in the file."""
    tokens = tokenizer("bert")
    reference = 'He said "hello" and didn\'t pay $3,000.[SEP]It was well-known.'
    written = tokens.decode(tokens.encode_commands(reference), print_special=True).strip()
    ours, theirs = generation._fixed(seq2seq.cnn_dm("nowhere"), tokens, [written], [reference])
    assert [part.strip() for part in ours[0].split("[SEP]")] == [
        "he said `` hello '' and did n't pay $ 3,000 .", "it was well-known .",
    ]  # fmt: skip
    assert ours == theirs
    ours, theirs = generation._fixed(seq2seq.gigaword("nowhere"), tokens, ["a [UNK] - b"], ["A [UNK] - b"])
    assert ours == theirs == ["a UNK - b"]
    infilling = InfillingTask("blank", infilling_source("nowhere"), 0.3)
    assert generation._fixed(infilling, tokens, ["do n ' t"], ["Do n't"]) == (["do n't"], ["Do n't"])


def test_verses_of_two_translations():
    """Every verse once; the books that pretraining holds out are not trained on."""
    task = find("kjv_to_web")
    splits = {split: read(task.source, split) for split in ("train", "validation", "test")}
    assert {split: len(examples) for split, examples in splits.items()} == {
        "train": 29653, "validation": 723, "test": 723,
    }  # fmt: skip
    held_out = {int(e.id.split("-")[0]) for split in ("validation", "test") for e in splits[split]}
    assert held_out == set(HELD_OUT_BOOKS)
    assert held_out.isdisjoint(int(e.id.split("-")[0]) for e in splits["train"])
    first = splits["train"][0]
    assert first.id == "1-1-1"
    assert first.fields["source"] == "In the beginning God created the heaven and the earth."
    assert first.fields["target"] == "In the beginning God created the heavens and the earth."
    (copied,) = baselines.baselines(task, Options(split="test"))
    assert copied.count == 723
    assert copied.numbers["bleu"] == pytest.approx(COPY, abs=0.01)
    with pytest.raises(TaskError, match="no split 'dev'; they have train, validation, test"):
        read(task.source, "dev")


def test_readers(tmp_path):
    (tmp_path / "val.source").write_text("UNK -lrb- a -rrb-\n")
    (tmp_path / "val.target").write_text("“x”\n")
    fields = read(seq2seq.gigaword(str(tmp_path)).source, "validation")[0].fields
    assert (fields["source"], fields["target"]) == ("[UNK] ( a )", '"x"')
    (tmp_path / "XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json").write_text(json.dumps({"test": ["7"]}))
    (tmp_path / "7.summary").write_text(
        "[SN]URL[SN]\nu\n[SN]FIRST-SENTENCE[SN]\nShort.\n[SN]RESTBODY[SN]\nLong\ntext.\n"
    )
    fields = read(seq2seq.xsum(str(tmp_path)).source, "test")[0].fields
    assert fields == {"source": "Long text.", "target": "Short."}
    (tmp_path / "7.summary").write_text("[SN]URL[SN]\nu\n")
    with pytest.raises(TaskError, match=r"7\.summary has no RESTBODY"):
        read(seq2seq.xsum(str(tmp_path)).source, "test")
    asked = {"id": "q", "question": "Q?", "answers": [{"text": "A"}]}
    squad = {"data": [{"paragraphs": [{"context": "C", "qas": [asked, {**asked, "answers": []}]}]}]}
    (tmp_path / "dev.json").write_text(json.dumps(squad))
    examples = read(seq2seq.squad_generation(str(tmp_path)).source, "validation")
    assert [(e.fields["answer"], e.fields["target"]) for e in examples] == [("A", "Q?")]


def test_words_to_copy_are_those_of_the_verses_in_another_order():
    task = find(str(ROOT / "configs/tasks/copied_words.py"))
    for copied, verse in zip(read(task.source, "test", 20), read(seq2seq.verse_pairs, "test", 20), strict=True):
        words, modern = copied.fields["source"].split(), verse.fields["target"].split()
        assert copied.fields["target"] == copied.fields["source"]
        assert sorted(words) == sorted(modern)
        assert words != modern
