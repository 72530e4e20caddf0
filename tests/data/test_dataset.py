import itertools

import numpy as np
import pytest

from glm_jax import data
from glm_jax.data import DataError
from glm_jax.data.packing import Mixture, SampledRows
from glm_jax.tokenizers import TokenizerError


def quiet(line):
    del line


@pytest.mark.thorough
def test_embedded_corpus(embedded):
    statistics = embedded.statistics["bible"]
    assert (statistics["train"]["documents"], statistics["validation"]["documents"]) == (2278, 100)
    assert statistics["train"]["rows"] == len(embedded.train_rows)
    assert abs(statistics["train"]["tokens"] - 1_953_592) < 20_000
    assert embedded.tokenizer.vocab_size == 4096
    first = embedded.train_rows[0]["tokens"]
    assert embedded.tokenizer.decode(first).startswith("In the beginning God created the heaven and the earth. And")
    held_out = embedded.validation_rows[0]["tokens"]
    assert embedded.tokenizer.decode(held_out).startswith("Now it came to pass in the days when the judges ruled")
    assert embedded.tokenizer.special.cls == first[0]
    (batch,) = itertools.islice(data.train_iterator(embedded.train_rows, batch_size=2, seed=0), 1)
    assert batch["tokens"].shape == (2, 128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, word in (("a", "cats"), ("b", "dogs")):
        documents = [f"the story of {i} {word} and their {word} house." for i in range(300)]
        (folder / f"{name}.txt").write_text("\n".join(documents))
    return folder


def load(folder, names="ab", **options):
    corpora = [
        {"source": f"{folder}/{name}.txt", "documents": "line", "validation_fraction": 0.1, "weight": weight}
        for name, weight in zip(names, (3, 1), strict=False)
    ]
    spec = {"corpora": corpora, "tokenizer": {"vocab_size": 300, "pad_vocab_to_multiple_of": 16}, "sequence_length": 24}
    return data.load(spec | {"data_dir": str(folder / "data"), "tokenize_workers": 0} | options, report=quiet)


def test_mixture_of_files(folder):
    loaded = load(folder)
    assert isinstance(loaded.train_rows, Mixture)
    assert loaded.train_rows.weights == [3.0, 1.0]
    assert [described["share"] for described in loaded.statistics.values()] == [0.75, 0.25]
    assert list(loaded.validation_by_corpus) == [f"{folder}/a.txt", f"{folder}/b.txt"]
    assert len(loaded.validation_rows) == sum(map(len, loaded.validation_by_corpus.values()))
    assert loaded.tokenizer.vocab_size == 304
    batches = data.validation_batches(loaded.validation_rows, batch_size=1)
    texts = " ".join(loaded.tokenizer.decode(batch["tokens"][0]) for batch in batches)
    assert texts.rindex("cats") < texts.index("dogs")


def test_loading_again_finds_everything(folder, monkeypatch):
    first = load(folder)
    from glm_jax.data import prepare
    from glm_jax.tokenizers import sentencepiece_tokenizer

    monkeypatch.setattr(prepare, "write_shard", None)
    monkeypatch.setattr(sentencepiece_tokenizer, "train", None)
    again = load(folder, sequence_length=32)  # cutting otherwise needs no new tokenising
    assert again.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    assert (
        again.statistics[f"{folder}/a.txt"]["train"]["tokens"] == first.statistics[f"{folder}/a.txt"]["train"]["tokens"]
    )


def test_tokenizer_by_path_or_by_argument(folder, tmp_path):
    first = load(folder, "a")
    first.tokenizer.save(tmp_path)
    by_path = load(folder, "b", tokenizer={"path": str(tmp_path)})
    assert by_path.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    spec = {
        "corpora": {"source": f"{folder}/b.txt", "documents": "line", "validation_fraction": 0},
        "data_dir": str(folder / "data"),
        "tokenize_workers": 0,
    }
    by_argument = data.load(spec, tokenizer=first.tokenizer, report=quiet)
    assert by_argument.tokenizer is first.tokenizer


def test_the_tokenizer_never_sees_the_validation_documents(folder, monkeypatch):
    from glm_jax.tokenizers import sentencepiece_tokenizer

    seen, train = [], sentencepiece_tokenizer.train
    monkeypatch.setattr(sentencepiece_tokenizer, "train", lambda texts, **o: train(seen.extend(texts) or seen, **o))
    loaded = load(folder, data_dir=str(folder / "fresh"))
    assert len(seen) == sum(described["train"]["documents"] for described in loaded.statistics.values())
    assert len(seen) < 600
    seen.clear()
    load(folder, data_dir=str(folder / "little"), tokenizer={"vocab_size": 295, "training_megabytes": 0.004})
    assert 150 < len(seen) < 250  # 4,000 characters of each


def test_sampled_packing(folder):
    loaded = load(folder, "a", packing="sampled")
    assert isinstance(loaded.train_rows, SampledRows)
    row = loaded.train_rows[3]
    assert row["tokens"].shape == (24,)
    assert row["tokens"][0] == loaded.tokenizer.special.cls
    np.testing.assert_array_equal(loaded.validation_rows[0]["tokens"], load(folder, "a").validation_rows[0]["tokens"])


def test_without_validation(folder):
    spec = {
        "corpora": {"source": f"{folder}/a.txt", "documents": "line", "validation_fraction": 0},
        "tokenize_workers": 0,
    }
    loaded = data.load(spec | {"tokenizer": {"vocab_size": 300}, "data_dir": str(folder / "data")}, report=quiet)
    assert loaded.validation_rows is None
    assert loaded.statistics[f"{folder}/a.txt"]["train"]["documents"] == 300


def test_errors_come_through(folder):
    with pytest.raises(DataError, match="nearest: packing"):
        load(folder, pakcing="x")
    with pytest.raises(TokenizerError, match="at most"):
        load(folder, tokenizer={"vocab_size": 9000})
    with pytest.raises(TokenizerError, match="no tokenizer in"):
        load(folder, tokenizer={"path": str(folder)})
