import os
import pathlib
import resource
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from glm_jax.data import CorpusSpec, DataError, prepare
from glm_jax.data.corpora import open_corpus
from glm_jax.data.token_store import TokenStore
from glm_jax.tokenizers import sentencepiece_tokenizer

TEXTS = [f"document {i} about {'cats and ' * (i % 7)}dogs" for i in range(400)]
SHARD = 1500  # characters, instead of millions


@pytest.fixture(scope="module")
def tokenizer():
    return sentencepiece_tokenizer.train(TEXTS, vocab_size=320)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(prepare, "_FIRST_SHARD_CHARACTERS", SHARD)


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path, TEXTS)


def write_corpus(tmp_path, texts, name="a.txt"):
    (tmp_path / name).write_text("\n".join(texts))
    os.utime(tmp_path / name, (0, 0))
    return open_corpus(CorpusSpec(f"{tmp_path}/{name}", documents="line", validation_fraction=0.1), str(tmp_path))


def run(corpus, tokenizer, folder, split="train", workers=0):
    return prepare.prepare(corpus, split, tokenizer, folder, workers=workers, report=lambda line: None)


def contents(folder, skip=()):
    paths = sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return {path.name: path.read_bytes() for path in paths if path.name not in skip}


def test_documents_come_back_in_order(corpus, tokenizer, tmp_path):
    stores = {split: run(corpus, tokenizer, tmp_path, split) for split in ("train", "validation")}
    for split, store in stores.items():
        texts = [text for text, _ in corpus.documents(split)]
        assert [tokenizer.decode(store[i]) for i in range(len(store))] == texts
        assert store.lengths.tolist() == [len(tokenizer.encode(text)) for text in texts]
        tokens = np.concatenate([store[i] for i in range(len(store))])
        np.testing.assert_array_equal(store.token_counts, np.bincount(tokens, minlength=tokenizer.vocab_size))
        assert store.tokens == len(tokens)
        assert store.index["text_bytes"] == sum(map(len, texts))
    assert len(stores["train"]) + len(stores["validation"]) == 400
    assert len(stores["train"].index["shard_documents"]) > 5
    with pytest.raises(IndexError):
        store[len(store)]


def test_files_do_not_depend_on_the_workers(corpus, tokenizer, tmp_path):
    run(corpus, tokenizer, tmp_path / "alone")
    run(corpus, tokenizer, tmp_path / "pool", workers=2)
    assert contents(tmp_path / "pool") == contents(tmp_path / "alone")


def test_prepared_once_for_one_corpus_and_tokenizer(corpus, tokenizer, tmp_path, monkeypatch):
    store = run(corpus, tokenizer, tmp_path)
    other = sentencepiece_tokenizer.train(TEXTS, vocab_size=310)
    assert run(corpus, other, tmp_path).directory != store.directory
    monkeypatch.setattr(prepare, "write_shard", None)  # must not be needed again
    assert run(corpus, tokenizer, tmp_path).directory == store.directory
    changed = write_corpus(tmp_path, [*TEXTS, "one more"])
    with pytest.raises(TypeError):
        run(changed, tokenizer, tmp_path)


def test_a_killed_run_goes_on_after_its_complete_shards(corpus, tokenizer, tmp_path):
    expected = run(corpus, tokenizer, tmp_path / "whole")
    tokenizer.save(tmp_path / "tokenizer")
    script = f"""
        import os
        from glm_jax import tokenizers
        from glm_jax.data import CorpusSpec, prepare
        from glm_jax.data.corpora import open_corpus
        prepare._FIRST_SHARD_CHARACTERS = {SHARD}
        write, calls = prepare._write_npz, []
        def dying(path, arrays):
            calls.append(path)
            if len(calls) == 3:
                open(path, "wb").write(b"half")
                os.kill(os.getpid(), 9)
            write(path, arrays)
        prepare._write_npz = dying
        corpus = open_corpus(CorpusSpec({corpus.name!r}, documents="line", validation_fraction=0.1), "x")
        prepare.prepare(corpus, "train", tokenizers.load({str(tmp_path / "tokenizer")!r}), {str(tmp_path / "killed")!r},
                        workers=0)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)]).returncode == -9
    (folder,) = (tmp_path / "killed/prepared").iterdir()
    complete = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    assert sorted(complete) == ["shard-00000.npz", "shard-00001.npz"]
    assert [path for path in folder.iterdir() if path.name.endswith(".partial")]
    with pytest.raises(DataError, match="no complete corpus"):
        TokenStore(folder)
    run(corpus, tokenizer, tmp_path / "killed")
    assert contents(folder) == contents(expected.directory)
    assert {name: (folder / name).stat().st_mtime_ns for name in complete} == complete


def test_a_full_disk_leaves_nothing_half_written(corpus, tokenizer, tmp_path, monkeypatch):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))  # no file may grow beyond a kilobyte
    try:
        with pytest.raises(DataError, match=r"cannot write to .*File too large.*; nothing is half-written"):
            run(corpus, tokenizer, tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert contents(tmp_path / "data") == {}
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(DataError, match=r"\(0\.0 MB free\): 0\.0 MB are needed"):
            run(corpus, tokenizer, tmp_path / "data")
    assert len(run(corpus, tokenizer, tmp_path / "data")) > 300


def test_a_worker_that_dies_is_reported(corpus, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_start_worker", os._exit)
    with pytest.raises(DataError, match=r"a process that tokenised .* died: for lack of memory"):
        run(corpus, tokenizer, tmp_path, workers=2)


def test_short_empty_and_huge_documents(tokenizer, tmp_path):
    huge = "cats and dogs " * 700_000  # ten megabytes in one line
    corpus = write_corpus(tmp_path, ["dogs", "\u200b", huge, "document"])
    corpus = open_corpus(CorpusSpec(corpus.name, documents="line", validation_fraction=0), str(tmp_path))
    store = run(corpus, tokenizer, tmp_path)
    assert store.lengths[0] == 1
    assert (len(store), store.index["empty"]) == (3, 1)  # the zero-width space is normalised to nothing
    assert tokenizer.decode(store[1][:1000]).startswith("cats and dogs cats")
    assert store.lengths[1] > 2_000_000


@pytest.mark.parametrize(
    ("texts", "split", "message"),
    [
        (["", " "], "train", "holds no document to train on"),
        (["\u200b"], "train", "holds no document to train on"),
        (["dogs"], "validation", "raise validation_fraction, or set it to 0"),
    ],
)
def test_nothing_to_prepare(tokenizer, tmp_path, texts, split, message):
    with pytest.raises(DataError, match=message):
        run(write_corpus(tmp_path, texts), tokenizer, tmp_path, split)


def test_large_vocabularies_take_four_bytes():
    assert [prepare.token_dtype(size) for size in (65_536, 65_537)] == ["<u2", "<u4"]


def test_progress_reports_rate_and_time_left(corpus, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_REPORT_SECONDS", 0.0)
    lines = []
    prepare.prepare(corpus, "train", tokenizer, tmp_path, workers=0, report=lines.append)
    assert len(lines) > 5
    assert all("tokens" in line and "MB/s" in line for line in lines)
    assert "s left" in lines[0]
    assert "100%" in lines[-1]


def test_damaged_files_are_named(corpus, tokenizer, tmp_path):
    store = run(corpus, tokenizer, tmp_path)
    folder = pathlib.Path(store.directory)
    os.remove(folder / "shard-00000.array_record")
    with pytest.raises(DataError, match=r"shard-00000\.array_record is missing"):
        TokenStore(folder)[0]
    np.save(folder / "lengths.npy", store.lengths[:-1])
    with pytest.raises(DataError, match="do not fit"):
        TokenStore(folder)
