"""Preparation on any Apache Beam runner: the same files as `prepare.prepare` writes, byte for byte.

The corpus is read twice, part by part: once for the lengths of its documents, from which it follows which shard each
belongs to, and once for their text, which the runner brings to the worker that writes the shard. The machine that
starts it sees lengths and counts only.
"""

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np

from glm_jax.data.corpora import Corpus, open_corpus
from glm_jax.data.dataset import load_tokenizer
from glm_jax.data.errors import DataError
from glm_jax.data.prepare import shard_characters, store_directory, write_index, write_shard
from glm_jax.data.specs import DataSpec
from glm_jax.data.text_files import is_remote
from glm_jax.data.token_store import INDEX_FILE, shard_name
from glm_jax.tokenizers.base import Tokenizer

logger = logging.getLogger(__name__)

_PLAN_FILE = ".plan.json"  # the workers' message to the machine that started them


def prepare_all(spec: DataSpec, arguments: Sequence[str]) -> list[str]:
    """Prepares every corpus and split of a spec on the runner that Beam's `arguments` name; returns the folders.

    `spec.data_dir` and the sources may be local, if all workers see them, or remote (gs://bucket/…, through fsspec).

    Raises:
      DataError: Beam is not installed, a corpus is at fault, or `data_dir` is remote and no tokenizer is given.
    """
    if is_remote(spec.data_dir) and not spec.tokenizer.path:
        raise DataError(f"data_dir {spec.data_dir} is remote: train a tokenizer on a sample first, and name its folder")
    data_dir = os.path.expanduser(spec.data_dir)
    corpora = [open_corpus(corpus, data_dir) for corpus in spec.corpora]
    tokenizer = load_tokenizer(spec.tokenizer, corpora, data_dir)
    return [
        prepare(corpus, split, tokenizer, data_dir, arguments)
        for corpus in corpora
        for split in (("train", "validation") if corpus.has_validation() else ("train",))
    ]


def prepare(corpus: Corpus, split: str, tokenizer: Tokenizer, data_dir, arguments: Sequence[str]) -> str:
    """`prepare.prepare` as a Beam pipeline with the options `arguments`; returns the folder of the store.

    Raises:
      DataError: Beam is not installed, or the corpus is empty. What a worker raises comes as the runner's error; the
        shards that are complete stay, and the next call does not write them again.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise DataError(f"Apache Beam cannot be imported ({error}): pip install apache-beam") from error
    directory, fingerprint = store_directory(corpus, split, tokenizer, data_dir)
    if _exists(os.path.join(directory, INDEX_FILE)):
        return directory
    _make_directory(directory)
    parts = list(enumerate(corpus.parts(split)))
    with beam.Pipeline(options=PipelineOptions(list(arguments))) as pipeline:
        read = pipeline | "parts" >> beam.Create(parts) | "spread" >> beam.Reshuffle()
        plan = (
            read
            | "lengths" >> beam.Map(_lengths, split)
            | "gather" >> beam.combiners.ToList()
            | "plan" >> beam.Map(_plan, directory)
        )
        _ = (
            read
            | "documents" >> beam.FlatMap(_documents, split, beam.pvalue.AsSingleton(plan))
            | "by shard" >> beam.GroupByKey()
            | "write" >> beam.Map(_write, tokenizer, directory)
        )
    with _local_copy(directory) as folder:
        with open(os.path.join(folder, _PLAN_FILE), encoding="utf-8") as file:
            totals = json.load(file)
        corpus.skipped = totals["skipped"]
        write_index(corpus, split, tokenizer, folder, fingerprint, totals["shards"])
    _remove(os.path.join(directory, _PLAN_FILE))
    logger.info("prepared %s (%s) in %s", corpus.name, split, directory)
    return directory


# What runs on the workers. Beam would take annotations here for types of its own, and check them.


def _lengths(part, split):
    number, corpus = part
    lengths = np.fromiter((len(text) for text, _ in corpus.documents(split)), np.int64)
    return number, lengths, corpus.skipped


def _plan(parts, directory):
    """Cuts shards where a single process would, which reads document after document.

    Returns, for each part, the shard of its first document and the documents that begin the next ones.
    """
    plan, shard, characters = [], 0, 0  # characters of the shard that is open
    for _, lengths, _ in sorted(parts, key=lambda part: part[0]):
        total, first, starts, done = np.cumsum(lengths), shard, [], 0
        while True:
            last = int(np.searchsorted(total, done + shard_characters(shard) - characters))
            if last >= len(lengths):
                break
            starts.append(last + 1)
            shard, characters, done = shard + 1, 0, int(total[last])
        characters += int(total[-1]) - done if len(total) else 0
        plan.append((first, starts))
    totals = {"shards": shard + (characters > 0), "skipped": sum(skipped for _, _, skipped in parts)}
    _write_text(os.path.join(directory, _PLAN_FILE), json.dumps(totals))
    return plan


def _documents(part, split, plan):
    number, corpus = part
    first, starts = plan[number][0], np.asarray(plan[number][1], np.int64)
    for document, (text, _) in enumerate(corpus.documents(split)):
        yield first + int(np.searchsorted(starts, document, side="right")), (number, document, text)


def _write(group, tokenizer, directory):
    shard, documents = group
    names = [shard_name(shard, suffix) for suffix in (".array_record", ".npz")]
    if not _exists(os.path.join(directory, names[1])):
        texts = [text for _, _, text in sorted(documents, key=lambda document: document[:2])]
        if not is_remote(directory):
            write_shard(tokenizer, directory, shard, texts)
        else:
            with tempfile.TemporaryDirectory() as folder:
                write_shard(tokenizer, folder, shard, texts)
                for name in names:  # the sizes last: they say that the shard is complete
                    _files(directory)[0].put(os.path.join(folder, name), os.path.join(directory, name))
    return shard


@contextlib.contextmanager
def _local_copy(directory: str) -> Iterator[str]:
    """The folder, or for a remote one a local folder with its small files; what is new there is brought back."""
    if not is_remote(directory):
        yield directory
        return
    files, path = _files(directory)
    with tempfile.TemporaryDirectory() as folder:
        for name in (os.path.basename(entry) for entry in files.ls(path, detail=False)):
            if not name.endswith(".array_record"):
                files.get(os.path.join(path, name), os.path.join(folder, name))
        known = set(os.listdir(folder))
        yield folder
        for name in sorted(set(os.listdir(folder)) - known, key=lambda name: name == INDEX_FILE):  # the index last
            files.put(os.path.join(folder, name), os.path.join(path, name))


def _files(path: str):
    import fsspec

    return fsspec.core.url_to_fs(path)


def _exists(path: str) -> bool:
    files, name = _files(path)
    return files.exists(name)


def _make_directory(path: str) -> None:
    files, name = _files(path)
    files.makedirs(name, exist_ok=True)


def _write_text(path: str, text: str) -> None:
    files, name = _files(path)
    files.pipe_file(name, text.encode())


def _remove(path: str) -> None:
    files, name = _files(path)
    files.rm_file(name)
