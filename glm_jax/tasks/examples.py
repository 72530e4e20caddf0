"""Where examples come from: a source is a function from a split's name to examples.

`jsonl`, `table`, `parallel`, `tfds` and `hub` make sources; glm_jax/tasks/superglue.py reads SuperGLUE's folders.
"""

import contextlib
import csv
import dataclasses
import functools
import gzip
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from glm_jax.tasks.errors import TaskError

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Example:
    """One example: an id that is unique in its split, its fields, and its label; None if it has no label."""

    id: str
    fields: Mapping[str, Any]
    label: Any = None


Source = Callable[[str], Iterable[Example]]


@contextlib.contextmanager
def error_context(example: Example) -> Iterator[None]:
    """Inside, a TaskError or a missing field names the example."""
    try:
        yield
    except TaskError as error:
        raise TaskError(f"example {example.id}: {error}") from error
    except KeyError as error:
        fields = ", ".join(map(str, example.fields))
        raise TaskError(f"example {example.id}: the template asks for {error}, but the fields are {fields}") from error


def read(source: Source, split: str, limit: int | None = None) -> list[Example]:
    """The examples of a split, the first `limit` of them. Raises TaskError for a split without any."""
    examples = []
    for example in source(split):
        if limit is not None and len(examples) >= limit:
            break
        examples.append(example)
    if not examples:
        raise TaskError(f"split {split!r} has no examples")
    return examples


def spread(source: Source, count: int) -> Source:
    """A source of `count` examples of each split, evenly spread over it; all of a shorter one. A split is read once."""

    @functools.cache
    def some(split):
        examples = list(source(split))
        chosen = min(count, len(examples))
        return [examples[i * len(examples) // chosen] for i in range(chosen)]

    return some


def jsonl(path: str, *, label: str | None = "label", fields: Mapping[str, str] | None = None) -> Source:
    """A source of JSON lines.

    Args:
      path: of a file; `{split}` in it is replaced.
      label: the field of the label; None: there are no labels.
      fields: renames fields: {name in the template: name in the file}.

    The source raises TaskError for a missing file and, with its number, for a line that is not a JSON object or lacks a
    field.
    """

    def source(split):
        name = path.format(split=split)
        for number, record in json_lines(name):
            yield _example(f"{split}-{number}", record, label, fields, f"{name}, line {number}")

    return source


def table(
    path: str,
    *,
    columns: Sequence[str] | None = None,
    label: str | None = "label",
    fields: Mapping[str, str] | None = None,
) -> Source:
    """A source of the rows of a .csv or .tsv file, whose first line names its columns unless `columns` does.

    A .tsv has no quoting: quotation marks are text, as in GLUE. The source raises TaskError as that of `jsonl`, and for
    rows with more or fewer cells than columns.
    """

    def source(split):
        name = path.format(split=split)
        tabs = ".tsv" in os.path.basename(name)
        with open_text(name) as lines:
            options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
            reader = csv.reader(lines, **options)
            names = columns
            try:
                for row in reader:
                    where = f"{name}, line {reader.line_num}"
                    if names is None:
                        names = row
                        continue
                    if len(row) != len(names):
                        raise TaskError(f"{where}: {len(row)} cells for {len(names)} columns ({', '.join(names)})")
                    record = dict(zip(names, row, strict=True))
                    yield _example(f"{split}-{reader.line_num}", record, label, fields, where)
            except csv.Error as error:
                raise TaskError(f"{name}, line {reader.line_num}: {error}") from error

    return source


def parallel(folder: str) -> Source:
    """A source of pairs: one text a line in {split}.source and {split}.target (or val), fields `source` and `target`.

    The source raises TaskError for files with different numbers of lines.
    """

    def source(split):
        stem = split_file(folder, split, "source", validation="val").removesuffix(".source")
        with open_text(stem + ".source") as sources, open_text(stem + ".target") as targets:
            rows = [[line.rstrip("\r\n") for line in lines] for lines in (sources, targets)]
        if len(rows[0]) != len(rows[1]):
            raise TaskError(f"{stem}.source has {len(rows[0])} lines, but .target has {len(rows[1])}")
        for number, (text, target) in enumerate(zip(*rows, strict=True)):
            yield Example(f"{split}-{number}", {"source": text, "target": target})

    return source


def tfds(
    name: str, data_dir: str = "data", *, label: str | None = "label", fields: Mapping[str, str] | None = None
) -> Source:
    """A source of a TFDS dataset prepared in data_dir/tfds. It raises DataError, which says how to prepare it."""

    def source(split):
        from glm_jax.data.corpora import open_tfds_builder  # loads TFDS

        builder = open_tfds_builder(name, os.path.join(data_dir, "tfds"))
        if split.split("[")[0] not in builder.info.splits:
            raise TaskError(f"{name} has no split {split!r}; it has {', '.join(builder.info.splits)}")
        for number, record in enumerate(builder.as_data_source(split=split)):
            record = {key: _plain(value) for key, value in record.items()}
            yield _example(f"{split}-{number}", record, label, fields, f"{name}, {split}, example {number}")

    return source


def hub(
    name: str, config: str | None = None, *, label: str | None = "label", fields: Mapping[str, str] | None = None
) -> Source:
    """A dataset of the Hugging Face hub, where the package `datasets` is installed."""

    def source(split):
        try:
            import datasets
        except ImportError:
            raise TaskError(
                f"the hub's dataset {name!r} needs the package datasets: pip install datasets, or export it to .jsonl"
            ) from None
        for number, record in enumerate(datasets.load_dataset(name, config, split=split)):
            yield _example(f"{split}-{number}", record, label, fields, f"{name}, {split}, example {number}")

    return source


def json_lines(path: str) -> Iterator[tuple[int, dict]]:
    """(line number from 1, object) of every line that is not blank. Raises TaskError, naming file and line."""
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise TaskError(f"{path}, line {number}: not JSON ({error})") from error
            if not isinstance(record, dict):
                raise TaskError(f"{path}, line {number}: a {type(record).__name__} where an object is expected")
            yield number, record


def split_file(folder: str, split: str, suffix: str, *, validation: str) -> str:
    """The path of a split's file. The validation split may have the name `validation` instead."""
    path = os.path.join(folder, f"{split}.{suffix}")
    if split == "validation" and not os.path.exists(path):
        path = os.path.join(folder, f"{validation}.{suffix}")
    return path


class open_text:
    """A context: the lines of a UTF-8 file, also .gz and .xz. Raises TaskError for a missing or damaged file."""

    def __init__(self, path: str):
        self._path = os.path.expanduser(path)

    def __enter__(self):
        folder = os.path.dirname(self._path) or "."
        if not os.path.isfile(self._path):
            there = sorted(os.listdir(folder)) if os.path.isdir(folder) else None
            hint = (
                f"{folder} holds {', '.join(there[:10]) or 'nothing'}"
                if there is not None
                else f"{folder} is no folder"
            )
            raise TaskError(f"there is no file {self._path}: {hint}")
        opener = {".gz": gzip.open, ".xz": lzma.open}.get(os.path.splitext(self._path)[1], open)
        self._file = opener(self._path, "rt", encoding="utf-8-sig", newline="")
        return self._file

    def __exit__(self, kind, error, traceback):
        self._file.close()
        if isinstance(error, UnicodeDecodeError | EOFError | gzip.BadGzipFile | lzma.LZMAError | zlib.error):
            raise TaskError(f"{self._path}: not UTF-8, damaged or cut off: {error}") from error


def _example(identity, record, label, fields, where):
    for name in [*(fields or {}).values(), *([label] if label else [])]:
        if name not in record:
            raise TaskError(f"{where}: there is no field {name!r}; there are {', '.join(map(str, record))}")
    renamed = {new: record[old] for new, old in (fields or {}).items()}
    return Example(identity, {**record, **renamed}, record[label] if label else None)


def _plain(value):
    """TFDS gives bytes and NumPy numbers."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
