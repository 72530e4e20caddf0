"""Sources of documents, each with a training and a validation split that never overlap."""

import contextlib
import copy
import importlib
import importlib.util
import io
import itertools
import os
import re
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from glm_jax.data import text_files
from glm_jax.data.errors import DataError
from glm_jax.data.specs import CorpusSpec

_TFDS_GROUPS = ("text", "summarization", "question_answering", "translate", "datasets", "text_simplification")
_BLOCK = 256  # TFDS examples read at a time
_PART = 1 << 14  # TFDS examples of a part


@runtime_checkable
class Corpus(Protocol):
    """Documents in a fixed order.

    Attributes:
      name: for messages and folder names.
      skipped: bad lines that the latest pass over `documents` left out.
    """

    name: str
    skipped: int

    def has_validation(self) -> bool:
        """Whether a validation split was asked for."""

    def identity(self, split: str) -> list:
        """What the documents of a split are, as JSON: another identity means that they may be others."""

    def documents(self, split: str) -> Iterator[tuple[str, float]]:
        """Yields (document, share of the source read so far) of `train` or `validation`, none of them empty."""

    def parts(self, split: str) -> list["Corpus"]:
        """Corpora whose documents, one after the other, are those of this split; they can be read at the same time."""


def open_corpus(spec: CorpusSpec, data_dir: str) -> Corpus:
    """The corpus that `spec.source` names; TFDS data is looked for, and the embedded corpus built, in data_dir/tfds.

    Raises:
      DataError: there is no such corpus, or it has not been prepared (the message says how).
    """
    tfds_dir = os.path.join(data_dir, "tfds")
    if re.fullmatch(r"bible(/\w+)?", spec.source) and not os.path.exists(spec.source):
        return _open_bible(spec, tfds_dir)
    if spec.source.startswith("tfds:"):
        return TfdsCorpus(spec, open_tfds_builder(spec.source.removeprefix("tfds:"), tfds_dir))
    return FileCorpus(spec)


class FileCorpus:
    """Local files. Held out: the files of `validation_source`, else a fraction of the documents by hash."""

    def __init__(self, spec: CorpusSpec):
        self.name = spec.source
        self.skipped = 0
        self._spec = spec
        self._paths = {"train": text_files.find_files(spec.source)}
        if spec.validation_source:
            self._paths["validation"] = text_files.find_files(spec.validation_source)
            if both := set(map(os.path.realpath, self._paths["train"])) & set(
                map(os.path.realpath, self._paths["validation"])
            ):
                raise DataError(f"{sorted(both)[0]} is both trained and validated on: take it out of one of the two")

    def has_validation(self) -> bool:
        return bool(self._spec.validation_source) or self._spec.validation_fraction > 0

    def identity(self, split: str) -> list:
        spec, paths = self._spec, self._paths.get(split, self._paths["train"])
        held_out = "files" if "validation" in self._paths else spec.validation_fraction
        return [text_files.describe_files(paths), spec.text_key, spec.documents, spec.bad_lines, held_out, split]

    def documents(self, split: str) -> Iterator[tuple[str, float]]:
        spec, by_hash = self._spec, "validation" not in self._paths
        files = text_files.TextFiles(
            self._paths["train" if by_hash else split],
            documents=spec.documents,
            text_key=spec.text_key,
            skip_bad=spec.bad_lines == "skip",
        )
        for text, done in files:
            self.skipped = files.skipped
            if not by_hash or text_files.is_held_out(text, spec.validation_fraction) == (split == "validation"):
                yield text, done
        self.skipped = files.skipped

    def parts(self, split: str) -> list["FileCorpus"]:
        source = split if split in self._paths else "train"
        parts = []
        for path in self._paths[source]:
            part = copy.copy(self)
            part._paths = {**self._paths, source: [path]}
            parts.append(part)
        return parts


class TfdsCorpus:
    """A prepared TFDS dataset. Held out: its validation split, else a fraction of the training documents by hash."""

    def __init__(self, spec: CorpusSpec, builder):
        self.name = spec.source
        self.skipped = 0
        self._spec = spec
        self._builder = builder
        self._range = None  # of the examples, where this is a part
        splits = builder.info.splits
        self._splits = {"train": spec.train_split}
        if spec.validation_split or "validation" in splits:
            self._splits["validation"] = spec.validation_split or "validation"
        for name in self._splits.values():
            if name.split("[")[0] not in splits:
                raise DataError(f"{self.name} has no split {name!r}; it has {', '.join(splits)}")
        if "validation" in self._splits and _share_examples(*self._splits.values(), splits):
            raise DataError(
                f"{self.name}: examples of {self._splits['train']!r} are both trained and validated on as "
                f"{self._splits['validation']!r}; choose apart, such as 'train[:99%]' and 'train[99%:]'"
            )
        if spec.text_key not in builder.info.features:
            raise DataError(
                f"{self.name} has no field {spec.text_key!r}; it has {', '.join(builder.info.features)}: set text_key"
            )

    def has_validation(self) -> bool:
        return "validation" in self._splits or self._spec.validation_fraction > 0

    def identity(self, split: str) -> list:
        info = self._builder.info
        name = self._splits.get(split, self._splits["train"])
        held_out = "split" if "validation" in self._splits else self._spec.validation_fraction
        shape = info.splits[name.split("[")[0]]
        return [info.full_name, name, shape.num_examples, shape.num_bytes, self._spec.text_key, held_out, split]

    def documents(self, split: str) -> Iterator[tuple[str, float]]:
        by_hash, spec = "validation" not in self._splits, self._spec
        self.skipped = 0
        source = self._builder.as_data_source(split=self._splits["train" if by_hash else split])
        first, end = self._range or (0, len(source))
        for start in range(first, end, _BLOCK):
            indices = range(start, min(start + _BLOCK, end))
            for index, example in zip(indices, source.__getitems__(list(indices)), strict=True):
                text = self._text(example[spec.text_key], index)
                held_out = by_hash and text_files.is_held_out(text, spec.validation_fraction)
                if text.strip() and (not by_hash or held_out == (split == "validation")):
                    yield text, (index + 1) / len(source)

    def parts(self, split: str) -> list["TfdsCorpus"]:
        name = self._splits.get(split, self._splits["train"])
        count, parts = len(self._builder.as_data_source(split=name)), []
        for start in range(0, count, _PART):
            part = copy.copy(self)
            part._range = (start, min(start + _PART, count))
            parts.append(part)
        return parts

    def _text(self, value, index: int) -> str:
        """The text of one example; an empty one, which is left out, for a bad one that is skipped."""
        if not isinstance(value, str | bytes):
            raise DataError(f"{self.name}: field {self._spec.text_key!r} is no text: set text_key")
        try:
            return value.decode("utf-8") if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            if self._spec.bad_lines == "error":
                raise DataError(f"{self.name}, example {index}: not UTF-8; set bad_lines='skip'") from error
            self.skipped += 1
            return ""


def _open_bible(spec: CorpusSpec, tfds_dir: str) -> TfdsCorpus:
    config = spec.source.partition("/")[2] or "both"
    from glm_jax.data.bible import TRANSLATIONS, Bible

    if config not in ("both", *TRANSLATIONS):
        raise DataError(f"the embedded corpus is bible, bible/{', bible/'.join(TRANSLATIONS)}; not {spec.source!r}")
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    builder = Bible(config=config, data_dir=tfds_dir, file_format="array_record")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download, and there is none
            builder.download_and_prepare()
    except (OSError, RuntimeError) as error:
        raise DataError(f"cannot build the embedded corpus in {tfds_dir}: {error}; set another data_dir") from error
    return TfdsCorpus(spec, builder)


def open_tfds_builder(name: str, tfds_dir: str):
    """The TFDS builder of a dataset that lies in `tfds_dir`. Raises DataError, which says how to prepare it."""
    import tensorflow_datasets as tfds

    dataset = re.split(r"[/:]", name)[0]
    module = _tfds_module(dataset)
    call = f"tfds.builder({name!r}, data_dir={tfds_dir!r}, file_format='array_record').download_and_prepare()"
    command = f'python -c "import tensorflow_datasets as tfds{", " + module if module else ""}; {call}"'
    try:
        if module:
            importlib.import_module(module)
        builder = tfds.builder(name, data_dir=tfds_dir, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError as error:
        raise DataError(f"TFDS {tfds.__version__} knows no dataset {name!r}, and none lies in {tfds_dir}") from error
    except ImportError as error:
        raise DataError(
            f"TFDS dataset {name!r} cannot be built here ({error}); prepare it on a machine with TensorFlow and copy "
            f"it to {tfds_dir}: {command}"
        ) from error
    if not builder.is_prepared():
        beam = isinstance(builder, tfds.core.BeamBasedBuilder)
        raise DataError(
            f"TFDS dataset {name!r} is not prepared in {tfds_dir}. Prepare it"
            + (" (with apache-beam installed)" if beam else "")
            + f": {command}"
        )
    if builder.info.file_format.value != "array_record":
        raise DataError(
            f"TFDS dataset {name!r} lies in {tfds_dir} as {builder.info.file_format.value}, which has no random "
            f"access; prepare it again: {command}"
        )
    return builder


def _tfds_module(dataset: str) -> str | None:
    """The module whose import makes a dataset known; without TensorFlow, TFDS does not find it by itself."""
    for group in _TFDS_GROUPS:
        for name in (f"tensorflow_datasets.{group}.{dataset}", f"tensorflow_datasets.{group}.{dataset}.{dataset}"):
            try:
                if importlib.util.find_spec(name) is not None:
                    return name
            except ModuleNotFoundError:
                continue
    return None


def _share_examples(one: str, other: str, splits: Any) -> bool:
    """Whether two TFDS splits, perhaps slices, have examples in common."""
    from tensorflow_datasets.core import splits as tfds_splits

    def ranges(name):
        for part in tfds_splits.AbstractSplit.from_spec(name).to_absolute(splits):
            end = splits[part.splitname].num_examples if part.to is None else part.to
            yield part.splitname, range(part.from_ or 0, end)

    return any(
        a == b and max(first.start, second.start) < min(first.stop, second.stop)
        for (a, first), (b, second) in itertools.product(ranges(one), ranges(other))
    )
