"""Preparation on a Beam runner leaves the files that one process leaves."""

import json
import pathlib
import sys

import pytest

import glm_jax.data.prepare as prepare_module
from glm_jax import data
from glm_jax.data import beam
from glm_jax.data.corpora import open_corpus
from glm_jax.data.errors import DataError
from glm_jax.data.specs import CorpusSpec, DataSpec
from glm_jax.data.token_store import TokenStore
from glm_jax.tokenizers import sentencepiece_tokenizer


@pytest.fixture(scope="module")
def texts():
    return [f"document {i} " + "all work and no play " * (i % 7 + 1) for i in range(300)]


@pytest.fixture(scope="module")
def tokenizer(texts):
    return sentencepiece_tokenizer.train(texts, vocab_size=300, pad_vocab_to_multiple_of=64)


def _write(folder, texts):
    """Files of unequal size, one of them empty, one with a bad line."""
    for number, (first, last) in enumerate(((0, 10), (10, 200), (200, 200), (200, 300))):
        lines = [json.dumps({"text": text}) for text in texts[first:last]]
        (folder / f"{number}.jsonl").write_text("\n".join(lines + ["{bad"] * (number == 3)))
    return CorpusSpec(str(folder / "*.jsonl"), validation_fraction=0.2, bad_lines="skip")


def _contents(directory):
    return {path.name: path.read_bytes() for path in pathlib.Path(directory).iterdir()}


@pytest.mark.parametrize("characters", [500, 3000, 1 << 30])
def test_shards_are_cut_where_one_process_cuts_them(texts, tmp_path, monkeypatch, characters):
    """Needs no Beam: the plan against the loop of `prepare`."""
    monkeypatch.setattr(prepare_module, "_FIRST_SHARD_CHARACTERS", characters)
    corpus = open_corpus(_write(tmp_path, texts), str(tmp_path))
    for split in ("train", "validation"):
        wanted = [(shard, text) for shard, part, *_ in prepare_module._shards(corpus, split) for text in part]
        parts = list(enumerate(corpus.parts(split)))
        plan = beam._plan([beam._lengths(part, split) for part in parts[::-1]], str(tmp_path))
        found = [place for part in parts for place in beam._documents(part, split, plan)]
        assert [(shard, text) for shard, (_, _, text) in found] == wanted
        told = json.loads((tmp_path / beam._PLAN_FILE).read_text())
        assert told == {"shards": wanted[-1][0] + 1, "skipped": 1}


@pytest.mark.parametrize("workers", ["1", "3"])
def test_the_direct_runner_writes_the_same_bytes(texts, tokenizer, tmp_path, monkeypatch, workers):
    pytest.importorskip("apache_beam")
    monkeypatch.setattr(prepare_module, "_FIRST_SHARD_CHARACTERS", 3000)
    spec = _write(tmp_path, texts)
    arguments = ["--runner=FnApiRunner", f"--direct_num_workers={workers}"]
    for split in ("train", "validation"):
        corpus = open_corpus(spec, str(tmp_path))
        one = prepare_module.prepare(corpus, split, tokenizer, tmp_path / "one", workers=0)
        many = beam.prepare(open_corpus(spec, str(tmp_path)), split, tokenizer, tmp_path / "many", arguments)
        assert pathlib.Path(one.directory).name == pathlib.Path(many).name
        assert _contents(one.directory) == _contents(many)
        assert len(_contents(many)) > 3 + 2 * (split == "train")


def test_a_bucket_in_and_out(texts, tokenizer, tmp_path, monkeypatch):
    """fsspec's file system in memory stands for gs://; the folder, copied to a disk, is a store."""
    pytest.importorskip("apache_beam")
    import fsspec

    monkeypatch.setattr(prepare_module, "_FIRST_SHARD_CHARACTERS", 3000)
    _write(tmp_path, texts)
    files = fsspec.filesystem("memory")
    files.put(str(tmp_path / "*.jsonl"), "/bucket/texts/")
    tokenizer.save(tmp_path / "tokenizer")
    corpora = [{"source": "memory://bucket/texts/*.jsonl", "validation_fraction": 0.2, "bad_lines": "skip"}]
    values = {
        "corpora": corpora,
        "data_dir": "memory://bucket/data",
        "tokenizer": {"path": str(tmp_path / "tokenizer")},
    }
    train, _ = beam.prepare_all(DataSpec.from_dict(values), ["--runner=FnApiRunner"])
    files.get(train.replace("memory://", "/"), str(tmp_path / "copy"), recursive=True)
    wanted = prepare_module.prepare(
        open_corpus(CorpusSpec(**corpora[0]), ""), "train", tokenizer, tmp_path / "one", workers=0
    )
    assert _contents(tmp_path / "copy") == _contents(wanted.directory)
    assert len(TokenStore(tmp_path / "copy")) == len(wanted)
    again = beam.prepare_all(DataSpec.from_dict(values), ["--runner=none that exists"])
    assert again[0] == train  # what is there is not prepared again


def test_the_embedded_corpus_in_parts(tmp_path):
    corpus = open_corpus(CorpusSpec("bible/kjv"), str(tmp_path))
    for split in ("train", "validation"):
        whole = [text for text, _ in corpus.documents(split)]
        assert [text for part in corpus.parts(split) for text, _ in part.documents(split)] == whole


def test_without_beam_the_error_says_what_to_install(texts, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    corpus = open_corpus(_write(tmp_path, texts), str(tmp_path))
    with pytest.raises(DataError, match="pip install apache-beam"):
        beam.prepare(corpus, "train", tokenizer, tmp_path, [])
    assert not (tmp_path / "prepared").exists()


def test_a_remote_folder_needs_a_tokenizer():
    with pytest.raises(DataError, match="is remote: train a tokenizer on a sample first"):
        beam.prepare_all(data.DataSpec(data_dir="gs://bucket/data"), [])
