"""Tokenised documents on disk, by number: what `prepare` writes and the packing reads."""

import functools
import hashlib
import json
import os
import threading
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Integer

from glm_jax.data.errors import DataError

INDEX_FILE = "index.json"  # written last: a folder without it is not complete
LENGTHS_FILE = "lengths.npy"
COUNTS_FILE = "counts.npy"
# One record a group and no compression: a document is read by one seek, and token ids hardly compress.
WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0"
_CACHED_DOCUMENTS = 16  # neighbouring rows share documents


def shard_name(shard: int, suffix: str) -> str:
    """File name of one shard: `.array_record` holds the documents, `.npz` their lengths and counts."""
    return f"shard-{shard:05d}{suffix}"


@runtime_checkable
class Documents(Protocol):
    """Token ids of documents by number, without special tokens: `TokenStore`, or arrays in memory."""

    lengths: Int[np.ndarray, "documents"]

    def __len__(self) -> int: ...

    def __getitem__(self, document: int) -> Integer[np.ndarray, "L"]: ...

    def fingerprint(self) -> str: ...


class TokenStore:
    """Random access to the token ids of documents, without special tokens.

    Args:
      directory: a folder that `prepare` completed.

    Attributes:
      lengths: int64 `[documents]`, tokens of each document.
      token_counts: int64 `[V]`, how often each id occurs.
      index: the contents of index.json: corpus, split, tokens, documents, text_bytes, …

    Raises:
      DataError: the folder is not complete, or its files do not fit together.
    """

    def __init__(self, directory):
        self.directory = os.fspath(directory)
        try:
            with open(os.path.join(self.directory, INDEX_FILE), encoding="utf-8") as file:
                self.index = json.load(file)
            self.lengths = np.load(os.path.join(self.directory, LENGTHS_FILE))
            self.token_counts = np.load(os.path.join(self.directory, COUNTS_FILE))
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{self.directory} holds no complete corpus ({error}); delete it and load again") from error
        self._first = np.concatenate([[0], np.cumsum(self.index["shard_documents"], dtype=np.int64)])
        if self._first[-1] != len(self.lengths):
            raise DataError(f"{self.directory}: shards and {LENGTHS_FILE} do not fit; delete it and load again")
        shards = {shard_name(shard, ".array_record") for shard in range(len(self.index["shard_documents"]))}
        if missing := sorted(shards.difference(os.listdir(self.directory))):  # now, not hours later
            raise DataError(
                f"{os.path.join(self.directory, missing[0])} is missing"
                + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
                + "; copy it from where it was prepared, or delete the folder and load again"
            )
        self._open()

    def _open(self):
        self._readers: dict[int, object] = {}
        self._lock = threading.Lock()
        self._cached = functools.lru_cache(maxsize=_CACHED_DOCUMENTS)(self._read)

    def __getstate__(self):
        return self.directory

    def __setstate__(self, directory):
        self.__init__(directory)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, document: int) -> Integer[np.ndarray, "L"]:
        """Token ids of one document (unsigned, read-only; L differs from document to document)."""
        if not 0 <= document < len(self):
            raise IndexError(f"document {document} of {len(self)}")
        return self._cached(int(document))

    @property
    def tokens(self) -> int:
        """Tokens of all documents together."""
        return int(self.index["tokens"])

    def fingerprint(self) -> str:
        """A hash of lengths and token counts; the same on every machine."""
        return hashlib.sha256(self.lengths.tobytes() + self.token_counts.tobytes()).hexdigest()

    def _read(self, document: int) -> np.ndarray:
        shard = int(np.searchsorted(self._first, document, side="right")) - 1
        record = self._reader(shard).read([document - int(self._first[shard])])[0]
        ids = np.frombuffer(record, np.dtype(self.index["dtype"]))
        if len(ids) != self.lengths[document]:
            path = os.path.join(self.directory, shard_name(shard, ".array_record"))
            raise DataError(
                f"{path} is damaged: document {document} has {len(ids)} tokens, not {self.lengths[document]}"
            )
        return ids

    def _reader(self, shard: int):
        with self._lock:
            if shard not in self._readers:
                from array_record.python import array_record_module

                path = os.path.join(self.directory, shard_name(shard, ".array_record"))
                self._readers[shard] = array_record_module.ArrayRecordReader(path, _READER_OPTIONS)
            return self._readers[shard]
