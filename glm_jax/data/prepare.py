"""Tokenises a corpus once, in parallel, into ArrayRecord shards.

A shard is a run of documents in corpus order whose bounds depend on the corpus alone, so the files are the same for any
number of workers, and a run that was killed goes on after the last complete shard. Everything is written under a
temporary name and renamed; processes that prepare the same folder at once write the same bytes and do no harm.
"""

import collections
import concurrent.futures
import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from glm_jax.data.corpora import Corpus
from glm_jax.data.errors import DataError
from glm_jax.data.token_store import COUNTS_FILE, INDEX_FILE, LENGTHS_FILE, WRITER_OPTIONS, TokenStore, shard_name
from glm_jax.tokenizers.base import Tokenizer

_FORMAT = 1  # raise when the files change their meaning
_FIRST_SHARD_CHARACTERS = 8_000_000
_LAST_SHARD_CHARACTERS = 64_000_000
_DISK_RESERVE = 4 << 20  # bytes that stay free
_REPORT_SECONDS = 2.0


def prepare(
    corpus: Corpus,
    split: str,
    tokenizer: Tokenizer,
    data_dir,
    *,
    workers: int | None = None,
    report: Callable[[str], None] | None = None,
) -> TokenStore:
    """Tokenises one split of a corpus, or opens what an earlier call prepared from the same corpus and tokenizer.

    Args:
      corpus, split: the documents; documents that have no token are left out and counted.
      tokenizer: must be picklable; it travels to the worker processes.
      data_dir: the result lies in `data_dir/prepared/NAME-SPLIT-FINGERPRINT`.
      workers: processes; 0 works in this one, None takes every core. A corpus of one shard needs no process.
      report: receives a progress line every two seconds; the default writes it to stderr.

    Raises:
      DataError: the corpus is empty, a document cannot be read, the disk is full, or a worker died. Complete shards
        stay, so that the next call goes on from there.
    """
    directory, fingerprint = store_directory(corpus, split, tokenizer, data_dir)
    if not os.path.exists(os.path.join(directory, INDEX_FILE)):
        try:
            os.makedirs(directory, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot make {directory}: {error}; set another data_dir") from error
        _remove_leftovers(directory)
        progress = _Progress(f"tokenising {corpus.name} ({split})", report or _to_stderr)
        _write_shards(corpus, split, tokenizer, directory, _worker_count(workers), progress)
        write_index(corpus, split, tokenizer, directory, fingerprint, progress.shards)
        progress.finish()
    return TokenStore(directory)


def store_directory(corpus: Corpus, split: str, tokenizer: Tokenizer, data_dir) -> tuple[str, str]:
    """Where a prepared split lies, and the fingerprint of what it is made from."""
    identity = [_FORMAT, corpus.identity(split), tokenizer.fingerprint(), _FIRST_SHARD_CHARACTERS]
    fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    name = re.sub(r"[^\w.]+", "_", corpus.name)[-80:].strip("_")
    return os.path.join(os.fspath(data_dir), "prepared", f"{name}-{split}-{fingerprint[:16]}"), fingerprint


def shard_characters(shard: int) -> int:
    """A shard ends with the document that brings it to so many characters: they grow, so that there are few."""
    return min(_FIRST_SHARD_CHARACTERS << min(shard // 16, 16), _LAST_SHARD_CHARACTERS)


def _worker_count(workers: int | None) -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return (available if available > 1 else 0) if workers is None else workers


def _write_shards(corpus, split, tokenizer, directory, workers, progress) -> None:
    pool, pending = None, collections.deque()
    try:
        for shard, texts, full, done in _shards(corpus, split):
            progress.done = done
            if os.path.exists(os.path.join(directory, shard_name(shard, ".npz"))):
                progress.add(shard, _read_shard_sizes(directory, shard), fresh=False)
            elif workers and (pool or full):  # a corpus of a single shard is not worth starting processes for
                pool = pool or concurrent.futures.ProcessPoolExecutor(
                    workers, multiprocessing.get_context("spawn"), _start_worker, (tokenizer, directory)
                )
                pending.append((shard, pool.submit(_write_shard_in_worker, shard, texts)))
            else:
                progress.add(shard, write_shard(tokenizer, directory, shard, texts))
            del texts
            while len(pending) > workers or (pending and pending[0][1].done()):  # bounds what is held in memory
                progress.add(pending[0][0], pending[0][1].result())
                pending.popleft()
        while pending:
            progress.add(pending[0][0], pending[0][1].result())
            pending.popleft()
    except BrokenProcessPool as error:
        raise DataError(
            f"a process that tokenised {corpus.name} died: for lack of memory (set fewer workers), or because a script "
            "starts it without `if __name__ == '__main__':`; run again to go on after the complete shards"
        ) from error
    finally:
        if pool:
            pool.shutdown(wait=True, cancel_futures=True)


def _shards(corpus: Corpus, split: str) -> Iterator[tuple[int, list[str], bool, float]]:
    """Yields (number, documents, whether it is full, share read)."""
    shard, texts, characters, done = 0, [], 0, 0.0
    for text, done in corpus.documents(split):
        texts.append(text)
        characters += len(text)
        if characters >= shard_characters(shard):
            yield shard, texts, True, done
            shard, texts, characters = shard + 1, [], 0
    if texts:
        yield shard, texts, False, done


_worker: tuple[Tokenizer, str] | None = None


def _start_worker(tokenizer: Tokenizer, directory: str) -> None:
    global _worker
    _worker = (tokenizer, directory)

    def end_with_parent():  # a parent that is killed cannot tell its workers to stop
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _write_shard_in_worker(shard: int, texts: list[str]) -> dict[str, int]:
    return write_shard(*_worker, shard, texts)


def write_shard(tokenizer: Tokenizer, directory: str, shard: int, texts: list[str]) -> dict[str, int]:
    """Tokenises and writes one shard; returns its sizes. Leaves either both of its files or neither.

    Raises:
      DataError: the disk is full or cannot be written.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    documents = [ids for ids in (np.asarray(tokenizer.encode(text), dtype) for text in texts) if len(ids)]
    lengths = np.array([len(ids) for ids in documents], np.int64)
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for ids in documents:
        counts += np.bincount(ids, minlength=tokenizer.vocab_size)
    sizes = {
        "documents": len(documents),
        "tokens": int(lengths.sum()),
        "empty": len(texts) - len(documents),
        "text_bytes": sum(len(text.encode("utf-8")) for text in texts),
    }
    with _disk_errors(directory, int(lengths.sum()) * np.dtype(dtype).itemsize):
        _write_atomically(directory, shard_name(shard, ".array_record"), lambda path: _write_records(path, documents))
        arrays = {"lengths": lengths, "counts": counts, **sizes}
        _write_atomically(directory, shard_name(shard, ".npz"), lambda path: _write_npz(path, arrays))
    return sizes


def token_dtype(vocab_size: int) -> str:
    """Little-endian type of the ids on disk."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


def _write_records(path: str, documents: list[np.ndarray]) -> None:
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(path, WRITER_OPTIONS)
    for ids in documents:
        writer.write(ids.tobytes())
    writer.close()
    reader = array_record_module.ArrayRecordReader(path, "readahead_buffer_size:0")
    if reader.num_records() != len(documents):  # the writer need not notice a full disk
        raise OSError(f"{path} took {reader.num_records()} of {len(documents)} documents")
    reader.close()


def _write_npz(path: str, arrays: dict) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def _write_atomically(directory: str, name: str, write: Callable[[str], None]) -> None:
    temporary = os.path.join(directory, f".{name}.{socket.gethostname()}.{os.getpid()}.partial")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, os.path.join(directory, name))
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


@contextlib.contextmanager
def _disk_errors(directory: str, size: int):
    """Turns what goes wrong while writing `size` bytes to `directory` into a DataError that names the disk."""

    def explained(reason):
        free = shutil.disk_usage(directory).free
        return DataError(
            f"cannot write to {directory} ({free / 1e6:.1f} MB free): {reason}; nothing is half-written, so make room "
            "or set another data_dir, and run again to go on after the complete shards"
        )

    if shutil.disk_usage(directory).free < size + _DISK_RESERVE:
        raise explained(f"{size / 1e6:.1f} MB are needed")
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:  # array_record reports the disk as RuntimeError
        raise explained(error) from error


def _read_shard_sizes(directory: str, shard: int) -> dict[str, int]:
    with np.load(os.path.join(directory, shard_name(shard, ".npz"))) as arrays:
        return {name: int(arrays[name]) for name in ("documents", "tokens", "empty", "text_bytes")}


def write_index(
    corpus: Corpus, split: str, tokenizer: Tokenizer, directory: str, fingerprint: str, shards: int
) -> None:
    """Writes what makes a folder of `shards` shards a complete store.

    Raises:
      DataError: the shards hold no document, or the disk is full.
    """
    lengths, counts, documents = [], np.zeros(tokenizer.vocab_size, np.int64), []
    total = collections.Counter(documents=0, tokens=0, empty=0, text_bytes=0)
    for shard in range(shards):
        with np.load(os.path.join(directory, shard_name(shard, ".npz"))) as arrays:
            lengths.append(arrays["lengths"])
            counts += arrays["counts"]
            documents.append(int(arrays["documents"]))
        total.update(_read_shard_sizes(directory, shard))
    if not total["documents"]:
        raise DataError(_empty_message(corpus, split))
    index = {
        "corpus": corpus.name,
        "split": split,
        "fingerprint": fingerprint,
        "tokenizer": tokenizer.fingerprint(),
        "dtype": token_dtype(tokenizer.vocab_size),
        "shard_documents": documents,
        "skipped": corpus.skipped,
        **total,
    }
    with _disk_errors(directory, 8 * total["documents"] + counts.nbytes):
        for name, array in ((LENGTHS_FILE, np.concatenate(lengths)), (COUNTS_FILE, counts)):
            _write_atomically(directory, name, lambda path, array=array: _write_npy(path, array))
        _write_atomically(directory, INDEX_FILE, lambda path: _write_text(path, json.dumps(index, indent=1)))


def _write_npy(path: str, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, array)


def _write_text(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text + "\n")


def _empty_message(corpus: Corpus, split: str) -> str:
    if split == "validation":
        return (
            f"{corpus.name}: no document was held out for validation; raise validation_fraction, or set it to 0 to "
            "train without a validation set"
        )
    skipped = f" ({corpus.skipped} bad lines were skipped)" if corpus.skipped else ""
    return f"{corpus.name} holds no document to train on{skipped}"


def _remove_leftovers(directory: str) -> None:
    """Deletes the temporary files of processes of this machine that were killed."""
    for name in os.listdir(directory):
        if (
            name.endswith(".partial")
            and f".{socket.gethostname()}." in name
            and not _is_alive(int(name.split(".")[-2]))
        ):
            os.remove(os.path.join(directory, name))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _to_stderr(line: str) -> None:
    end = "\r" if sys.stderr.isatty() else "\n"
    print(line.ljust(100) if end == "\r" else line, end=end, file=sys.stderr, flush=True)


class _Progress:
    """Counts what is written and says so, with rate and time left."""

    def __init__(self, title: str, report: Callable[[str], None]):
        self.shards, self.done = 0, 0.0
        self._title, self._report = title, report
        self._total: collections.Counter = collections.Counter()
        self._fresh_bytes, self._done_before = 0, 0.0
        self._start = self._last = time.monotonic()

    def add(self, shard: int, sizes: dict[str, int], *, fresh: bool = True) -> None:
        self.shards = max(self.shards, shard + 1)
        self._total.update(sizes)
        if fresh:
            self._fresh_bytes += sizes["text_bytes"]
        else:
            self._done_before = self.done
        if time.monotonic() - self._last >= _REPORT_SECONDS:
            self._last = time.monotonic()
            self._report(self._line())

    def finish(self) -> None:
        self.done = 1.0
        self._report(self._line() + ("\n" if self._report is _to_stderr and sys.stderr.isatty() else ""))

    def _line(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-6)
        speed = (self.done - self._done_before) / seconds
        left = f"{(1 - self.done) / speed:,.0f} s left" if speed > 0 and self.done < 1 else f"{seconds:,.1f} s"
        return (
            f"{self._title}: {self.done:4.0%}, {self._total['documents']:,} documents, "
            f"{self._total['tokens']:,} tokens, {self._fresh_bytes / 1e6 / seconds:.1f} MB/s, {left}"
        )
