"""What to read and how to cut it, as plain data."""

import dataclasses
from typing import Any, TypeVar

from glm_jax.data.errors import DataError
from glm_jax.files import nearest

DOCUMENTS = ("blank_line", "line", "file")
BAD_LINES = ("error", "skip")
PACKINGS = ("contiguous", "sampled")


Spec = TypeVar("Spec")


class _FromDict:
    @classmethod
    def from_dict(cls: type[Spec], values: Any) -> Spec:
        """Builds the spec from a dict or ConfigDict; an unknown key raises DataError with the nearest names."""
        names = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise DataError(f"{cls.__name__} has no field {key!r}; nearest: {nearest(key, names)}")
        required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
        if missing := [name for name in required if name not in values]:
            raise DataError(f"{cls.__name__} needs {', '.join(missing)}")
        return cls(**dict(values.items()))


def _one_of(owner: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise DataError(f"{owner} is {value!r}, but must be one of {', '.join(allowed)}")


@dataclasses.dataclass(frozen=True)
class CorpusSpec(_FromDict):
    """One source of documents.

    Attributes:
      source: `bible`, `bible/kjv` or `bible/web` (embedded, needs no download); `tfds:NAME/CONFIG:VERSION`; or a path
        or glob of .txt and .jsonl files, also .gz, .xz and .zst.
      weight: share of the training rows in a mixture, relative to the other corpora.
      text_key: the field of a JSON line or TFDS example that holds the text.
      documents: where a document ends in a .txt file: at a `blank_line`, at every `line`, or only with the `file`.
      train_split: the TFDS split to train on.
      validation_split: a TFDS split to validate on; None takes `validation` where the dataset has one, and else holds
        `validation_fraction` out.
      validation_source: files to validate on, instead of holding documents out of `source`.
      validation_fraction: share of the documents that is held out, chosen by a hash of their text (so that copies of
        a document stay on one side); 0 holds out nothing.
      bad_lines: `error` stops at text that is not UTF-8 or not JSON; `skip` leaves it out and counts it.
    """

    source: str
    weight: float = 1.0
    text_key: str = "text"
    documents: str = "blank_line"
    train_split: str = "train"
    validation_split: str | None = None
    validation_source: str | None = None
    validation_fraction: float = 0.01
    bad_lines: str = "error"

    def __post_init__(self):
        if not self.source:
            raise DataError("CorpusSpec.source is empty: name a corpus or a file")
        if not 0 < self.weight < float("inf"):
            raise DataError(f"CorpusSpec.weight must be a positive number, not {self.weight} (leave the corpus out)")
        if not 0 <= self.validation_fraction < 1:
            raise DataError(f"CorpusSpec.validation_fraction must lie in [0, 1), not {self.validation_fraction}")
        _one_of("CorpusSpec.documents", self.documents, DOCUMENTS)
        _one_of("CorpusSpec.bad_lines", self.bad_lines, BAD_LINES)


@dataclasses.dataclass(frozen=True)
class TokenizerSpec(_FromDict):
    """The tokenizer: one that exists (`path`), or a SentencePiece model trained on the training documents.

    Attributes:
      path: a directory written by `Tokenizer.save`, or with the files of a released vocabulary (`vocabulary`); the
        fields of the training then have no effect.
      vocabulary: `bert`, `roberta`, `gpt2` or `chinese`: `path` holds its files. Only then do these three count:
      task_masks, block_mask, fix_command_token: see `tokenizers.vocabularies.from_vocabulary`.
      vocab_size, normalization, byte_fallback, model_type, pad_vocab_to_multiple_of: see
        `sentencepiece_tokenizer.train`.
      training_megabytes: read at most this much text of each corpus for the training.
    """

    path: str | None = None
    vocabulary: str | None = None
    task_masks: bool = False
    block_mask: bool = False
    fix_command_token: bool = True
    vocab_size: int = 4096
    normalization: str = "nmt_nfkc"
    byte_fallback: bool = True
    model_type: str = "unigram"
    pad_vocab_to_multiple_of: int = 128
    training_megabytes: float = 200.0

    def __post_init__(self):
        if self.vocabulary is not None and not self.path:
            raise DataError(f"TokenizerSpec.vocabulary {self.vocabulary!r} needs path, the folder with its files")


@dataclasses.dataclass(frozen=True)
class DataSpec(_FromDict):
    """Corpora, tokenizer and packing: everything that decides which rows are trained on.

    Attributes:
      corpora: one or more corpora (specs or mappings).
      tokenizer: spec or mapping.
      sequence_length: L, tokens a row.
      packing: `contiguous` (every token once an epoch) or `sampled` (the original's windows, drawn at random).
      sample_one_document: `sampled` only: never join documents in a row.
      non_sentence_start: `sampled` only: probability that a window may start inside a sentence.
      data_dir: folder for everything that is prepared once.
      tokenize_workers: processes that tokenise; 0 uses this process alone, None all cores. Has no effect on the result.
      loader_workers: processes that make training batches; 0 uses threads of this one. Has no effect on the result.
    """

    corpora: tuple[CorpusSpec, ...] = (CorpusSpec("bible"),)
    tokenizer: TokenizerSpec = TokenizerSpec()
    sequence_length: int = 512
    packing: str = "contiguous"
    sample_one_document: bool = False
    non_sentence_start: float = 0.0
    data_dir: str = "data"
    tokenize_workers: int | None = None
    loader_workers: int = 0

    @classmethod
    def from_dict(cls, values: Any) -> "DataSpec":
        """Builds the spec and those inside it; an unknown key raises DataError with the nearest names."""
        values = dict(values.items())
        if "corpora" in values:
            corpora = values["corpora"]
            corpora = (
                [corpora] if isinstance(corpora, CorpusSpec) or hasattr(corpora, "keys") else corpora
            )  # one is enough
            values["corpora"] = tuple(c if isinstance(c, CorpusSpec) else CorpusSpec.from_dict(c) for c in corpora)
        if not isinstance(values.get("tokenizer", TokenizerSpec()), TokenizerSpec):
            values["tokenizer"] = TokenizerSpec.from_dict(values["tokenizer"])
        return super().from_dict(values)

    def __post_init__(self):
        if not self.corpora:
            raise DataError("DataSpec.corpora is empty: name at least one corpus")
        sources = [corpus.source for corpus in self.corpora]
        if len(set(sources)) != len(sources):
            raise DataError(f"DataSpec.corpora names a source twice ({', '.join(sources)}): raise its weight instead")
        if self.sequence_length < 4:
            raise DataError(f"DataSpec.sequence_length must be at least 4, not {self.sequence_length}")
        if not 0 <= self.non_sentence_start <= 1:
            raise DataError(f"DataSpec.non_sentence_start must lie in [0, 1], not {self.non_sentence_start}")
        if self.tokenize_workers is not None and self.tokenize_workers < 0:
            raise DataError(f"DataSpec.tokenize_workers must be None, 0 or more, not {self.tokenize_workers}")
        if self.loader_workers < 0:
            raise DataError(f"DataSpec.loader_workers must be 0 or more, not {self.loader_workers}")
        _one_of("DataSpec.packing", self.packing, PACKINGS)
