"""The front door: from a DataSpec to rows, tokenizer and statistics."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from glm_jax import tokenizers
from glm_jax.data import ngram, packing
from glm_jax.data.corpora import Corpus, open_corpus
from glm_jax.data.errors import DataError
from glm_jax.data.prepare import prepare
from glm_jax.data.specs import DataSpec, TokenizerSpec
from glm_jax.data.token_store import TokenStore
from glm_jax.tokenizers.base import Tokenizer
from glm_jax.tokenizers.vocabularies import from_vocabulary


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Everything a run needs to know about its text.

    Attributes:
      train_rows: for `pipeline.train_iterator`; a `Mixture` where there are several corpora.
      validation_rows: for `pipeline.validation_batches`, always contiguous; None where nothing is held out.
      validation_by_corpus: the same rows, by corpus name.
      tokenizer: its `special` ids and `vocab_size` belong into the model's config.
      statistics: by corpus name and split: documents, tokens, rows, text_bytes, bytes_per_token, empty documents and
        skipped lines; and `share`, its part of the training rows.
      train_stores: the training documents, by number.
    """

    train_rows: packing.PackedRows | packing.Mixture
    validation_rows: packing.PackedRows | None
    validation_by_corpus: dict[str, packing.PackedRows]
    tokenizer: Tokenizer
    statistics: dict[str, dict[str, Any]]
    train_stores: list[TokenStore]

    def ngram_baseline(self, max_tokens: int | None = 50_000_000) -> ngram.NgramBaseline:
        """Unigram and bigram counts of the training text; see `ngram.count_ngrams`."""
        special, vocab_size = self.tokenizer.special, self.tokenizer.vocab_size
        return ngram.count_ngrams(
            self.train_stores, vocab_size=vocab_size, cls=special.cls, eos=special.eos, max_tokens=max_tokens
        )


def load(
    spec: Any,
    *,
    tokenizer: Tokenizer | None = None,
    report: Callable[[str], None] | None = None,
    held_out: bool = False,
) -> Dataset:
    """Opens the corpora, trains or loads the tokenizer, tokenises what is not yet tokenised, and lays out the rows.

    All of it is kept under `spec.data_dir` and found again by a fingerprint of its inputs.

    Args:
      spec: what to load: a DataSpec, or a dict or ConfigDict for `DataSpec.from_dict`.
      tokenizer: takes the place of `spec.tokenizer`.
      report: receives progress lines; the default writes them to stderr.
      held_out: whether something must be held out.

    Raises:
      DataError: an option, a corpus or the disk is at fault, or nothing is held out.
      TokenizerError: the tokenizer cannot be trained or read.
    """
    spec = spec if isinstance(spec, DataSpec) else DataSpec.from_dict(spec)
    data_dir = os.path.expanduser(spec.data_dir)
    corpora = [open_corpus(corpus, data_dir) for corpus in spec.corpora]
    if held_out and not any(corpus.has_validation() for corpus in corpora):
        names = ", ".join(corpus.name for corpus in corpora)
        raise DataError(f"nothing of {names} is held out: set validation_fraction, _split or _source of a corpus")
    tokenizer = tokenizer or load_tokenizer(spec.tokenizer, corpora, data_dir)
    train, validation, statistics, stores = [], {}, {}, []
    weights = [corpus.weight for corpus in spec.corpora]
    for corpus, weight in zip(corpora, weights, strict=True):
        store = prepare(corpus, "train", tokenizer, data_dir, workers=spec.tokenize_workers, report=report)
        rows = _train_rows(spec, store, tokenizer)
        stores.append(store)
        train.append(rows)
        described = {"share": weight / sum(weights), "train": _describe(store, rows)}
        if corpus.has_validation():
            store = prepare(corpus, "validation", tokenizer, data_dir, workers=spec.tokenize_workers, report=report)
            validation[corpus.name] = _contiguous(spec, store, tokenizer)
            described["validation"] = _describe(store, validation[corpus.name])
        statistics[corpus.name] = described
    parts = list(validation.values())
    return Dataset(
        train_rows=packing.Mixture(train, weights) if len(train) > 1 else train[0],
        validation_rows=packing.ConcatenatedRows(parts) if len(parts) > 1 else (parts or [None])[0],
        validation_by_corpus=validation,
        tokenizer=tokenizer,
        statistics=statistics,
        train_stores=stores,
    )


def load_tokenizer(spec: TokenizerSpec, corpora: list[Corpus], data_dir: str) -> Tokenizer:
    """The tokenizer of a spec: read from `spec.path`, or trained on the corpora and kept in data_dir/tokenizers."""
    if spec.vocabulary is not None:
        return from_vocabulary(
            spec.vocabulary, spec.path, task_masks=spec.task_masks, block_mask=spec.block_mask,
            fix_command_token=spec.fix_command_token,
        )  # fmt: skip
    if spec.path:
        return tokenizers.load(os.path.expanduser(spec.path))
    options = dataclasses.asdict(spec)
    for released in ("vocabulary", "task_masks", "block_mask", "fix_command_token"):
        del options[released]
    # The name of this field in the folders that exist.
    named = {"vocab_multiple" if key == "pad_vocab_to_multiple_of" else key: value for key, value in options.items()}
    identity = json.dumps([named, [corpus.identity("train") for corpus in corpora]])
    directory = os.path.join(data_dir, "tokenizers", hashlib.sha256(identity.encode()).hexdigest()[:16])
    if os.path.exists(os.path.join(directory, tokenizers.SETTINGS_FILE)):
        return tokenizers.load(directory)
    from glm_jax.tokenizers import sentencepiece_tokenizer

    del options["path"], options["training_megabytes"]
    texts = (text for corpus in corpora for text in _first_texts(corpus, spec.training_megabytes))
    tokenizer = sentencepiece_tokenizer.train(texts, **options)
    try:
        tokenizer.save(directory)
    except OSError as error:
        raise DataError(
            f"cannot write the tokenizer to {directory}: {error}; make room or set another data_dir"
        ) from error
    return tokenizer


def _first_texts(corpus: Corpus, megabytes: float) -> Iterator[str]:
    characters = 0
    for text, _ in corpus.documents("train"):
        yield text
        characters += len(text)
        if characters >= megabytes * 1e6:
            return


def _train_rows(spec: DataSpec, store: TokenStore, tokenizer: Tokenizer) -> packing.PackedRows:
    if spec.packing == "contiguous":
        return _contiguous(spec, store, tokenizer)
    special = tokenizer.special
    return packing.SampledRows(
        store,
        sequence_length=spec.sequence_length,
        sentence_ends=tokenizer.sentence_ends(packing.SENTENCE_MARKS),
        cls=special.cls,
        eos=special.eos,
        pad=special.pad,
        sample_one_document=spec.sample_one_document,
        non_sentence_start=spec.non_sentence_start,
    )


def _contiguous(spec: DataSpec, store: TokenStore, tokenizer: Tokenizer) -> packing.ContiguousRows:
    special = tokenizer.special
    return packing.ContiguousRows(
        store, sequence_length=spec.sequence_length, cls=special.cls, eos=special.eos, pad=special.pad
    )


def _describe(store: TokenStore, rows: packing.PackedRows) -> dict[str, Any]:
    counted = {name: store.index[name] for name in ("documents", "tokens", "text_bytes", "empty", "skipped")}
    return {**counted, "rows": len(rows), "bytes_per_token": store.index["text_bytes"] / max(1, store.tokens)}
