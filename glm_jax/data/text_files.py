"""Documents from local files: .txt and .jsonl, plain or compressed, read line by line in bounded memory."""

import contextlib
import glob
import gzip
import hashlib
import io
import json
import lzma
import os
import zlib
from collections.abc import Iterator

from glm_jax.data.errors import DataError

_COMPRESSED = (".gz", ".xz", ".zst")
_UTF8_MARK = b"\xef\xbb\xbf"


def is_remote(path: str) -> bool:
    """Whether a path names no file of this machine but, for example, gs://bucket/file, for fsspec to open."""
    return "://" in path


def find_files(pattern: str) -> list[str]:
    """The files that a path or glob names, sorted by path.

    Raises:
      DataError: nothing matches, or a file is neither .txt nor .jsonl (followed by .gz, .xz or .zst if compressed).
    """
    pattern = os.path.expanduser(pattern)
    if is_remote(pattern):
        import fsspec

        files, _, paths = fsspec.get_fs_token_paths(pattern)
        matches = sorted(files.unstrip_protocol(path) for path in paths if files.isfile(path))
    elif os.path.isfile(pattern):
        matches = [pattern]
    else:
        matches = sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))
    if not matches:
        raise DataError(
            f"no file matches {pattern!r}; a corpus is bible, bible/kjv, bible/web, tfds:NAME, or a path or glob"
            + (f" ({pattern} is a directory: add /*.txt)" if os.path.isdir(pattern) else "")
        )
    for path in matches:
        _kind(path)
    return matches


def _kind(path: str) -> str:
    stem, suffix = os.path.splitext(path)
    if suffix in _COMPRESSED:
        suffix = os.path.splitext(stem)[1]
    if suffix not in (".txt", ".jsonl"):
        raise DataError(f"{path}: a text file ends in .txt or .jsonl, followed by .gz, .xz or .zst if compressed")
    return suffix


def describe_files(paths: list[str]) -> list[tuple]:
    """Path, size and modification time of each file: changes when a file does, without reading it."""
    return [_describe(path) for path in paths]


def _describe(path: str) -> tuple:
    if is_remote(path):
        import fsspec

        files, name = fsspec.core.url_to_fs(path)
        facts = files.info(name)
        changed = next((str(facts[key]) for key in ("etag", "ETag", "mtime", "LastModified") if key in facts), "")
        return path, facts["size"], changed
    state = os.stat(path)
    return os.path.abspath(path), state.st_size, state.st_mtime_ns


def _open(path: str):
    if is_remote(path):
        import fsspec

        return fsspec.open(path, "rb").open()
    return open(path, "rb")


class TextFiles:
    """Reads documents in the order of paths and lines.

    Args:
      paths: from `find_files`.
      documents: `blank_line`, `line` or `file`: where a document of a .txt file ends.
      text_key: the field of a JSON line that holds the text.
      skip_bad: leave out lines (with `documents="file"`: files) that are not UTF-8 or not JSON, instead of raising.

    Attributes:
      skipped: bad lines left out by the iteration that ran last.
    """

    def __init__(self, paths: list[str], *, documents: str, text_key: str, skip_bad: bool):
        self.paths, self.documents, self.text_key, self.skip_bad = paths, documents, text_key, skip_bad
        self.skipped = 0

    def __iter__(self) -> Iterator[tuple[str, float]]:
        """Yields (document, share of the bytes read so far).

        Raises:
          DataError: names the file and the line of text that is not UTF-8, JSON that does not parse, a missing text
            field, and a damaged compressed file.
        """
        self.skipped = 0
        sizes = [_describe(path)[1] for path in self.paths]
        total = max(1, sum(sizes))
        before = 0
        for path, size in zip(self.paths, sizes, strict=True):
            with _open(path) as raw, _decompressed(path, raw) as lines:
                try:
                    for text in self._documents(path, lines):
                        yield text, (before + raw.tell()) / total
                except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
                    raise DataError(f"{path}: the compressed file is damaged or cut off: {error}") from error
                except Exception as error:
                    if type(error).__name__ == "ZstdError":
                        raise DataError(f"{path}: the compressed file is damaged or cut off: {error}") from error
                    raise
            before += size

    def _documents(self, path: str, lines) -> Iterator[str]:
        if _kind(path) == ".jsonl":
            for number, line in self._numbered(path, lines):
                if line.strip() and (text := self._json_text(path, number, line)):
                    yield text
        elif self.documents == "line":
            for _, line in self._numbered(path, lines):
                if line.strip():
                    yield line
        elif self.documents == "blank_line":
            document = []
            for _, line in self._numbered(path, lines):
                if line.strip():
                    document.append(line)
                elif document:
                    yield "\n".join(document)
                    document = []
            if document:
                yield "\n".join(document)
        else:
            skipped = self.skipped
            text = "\n".join(line for _, line in self._numbered(path, lines))
            if self.skipped == skipped and text.strip():  # with skip_bad, one bad line spoils the document
                yield text

    def _numbered(self, path: str, lines) -> Iterator[tuple[int, str]]:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                line = line.removeprefix(_UTF8_MARK)
            try:
                yield number, line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                self._bad(path, number, f"not UTF-8 (byte {line[error.start]:#04x} at column {error.start + 1})")

    def _json_text(self, path: str, number: int, line: str) -> str | None:
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            return self._bad(path, number, f"not JSON ({error})")
        if not isinstance(record, dict) or not isinstance(record.get(self.text_key), str):
            keys = ", ".join(map(repr, record)) if isinstance(record, dict) else type(record).__name__
            return self._bad(path, number, f"no text under {self.text_key!r} (found: {keys}); set text_key")
        text = record[self.text_key]
        try:
            text.encode("utf-8")  # JSON can spell half a surrogate pair, which is no character
        except UnicodeEncodeError:
            return self._bad(path, number, "the text holds half a surrogate pair, which is not UTF-8")
        return text if text.strip() else None

    def _bad(self, path: str, number: int, reason: str) -> None:
        if not self.skip_bad:
            raise DataError(f"{path}, line {number}: {reason}; mend it, or set bad_lines='skip'")
        self.skipped += 1


@contextlib.contextmanager
def _decompressed(path: str, raw):
    if path.endswith(".gz"):
        with gzip.open(raw) as lines:
            yield lines
    elif path.endswith(".xz"):
        with lzma.open(raw) as lines:
            yield lines
    elif path.endswith(".zst"):
        with io.BufferedReader(_ZstdReader(raw), 1 << 20) as lines:
            yield lines
    else:
        yield raw


class _ZstdReader(io.RawIOBase):
    """Decompressed bytes of zstd frames; the package's own reader takes a file that is cut off for a whole one."""

    def __init__(self, raw):
        import zstandard

        self._raw, self._ready = raw, b""
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._frame = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            packed = (self._frame.unused_data if self._frame and self._frame.eof else b"") or self._raw.read(1 << 17)
            if not packed:
                if self._frame and not self._frame.eof:
                    raise EOFError("the last frame has no end")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._new_frame()
            self._ready = self._frame.decompress(packed)
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to the validation set: a hash of its text falls below `fraction`."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, person=b"glm-held-out").digest()
    return int.from_bytes(digest, "little") < fraction * 2.0**64
