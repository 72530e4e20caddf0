"""What several rooms need of files and texts: atomic writes, comparing configs, nearest names, text tables."""

import difflib
import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath


def write_atomic(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file so that a reader sees the old one or the new one, never a part.

    The content is first written under a temporary name that no other process of any machine uses.
    """
    path = epath.Path(path)
    temporary = path.parent / f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial"
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if "://" not in str(path):
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json_atomic(path: str | os.PathLike, value: Any) -> None:
    """`write_atomic` of `value` as JSON. Call it on one process only.

    Raises:
      ValueError: not JSON (NaN and infinity included); the old file stays.
    """
    try:
        text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot write {path} as JSON: {error}") from error
    write_atomic(path, text)


def compare_config(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Returns the sorted dotted keys ("model.num_layers") whose values differ or that only one of the configs has.

    Values are compared as JSON, in which a tuple is a list: `saved` was read from a file, `current` perhaps not.

    Raises:
      ValueError: a value is not JSON.
    """
    try:
        saved, current = (_flatten(json.loads(json.dumps(config))) for config in (saved, current))
    except TypeError as error:
        raise ValueError(f"configs to be compared must be JSON: {error}") from error
    missing = object()
    return sorted(key for key in saved | current if saved.get(key, missing) != current.get(key, missing))


def config_changes(saved: Mapping[str, Any], current: Mapping[str, Any], free: tuple[str, ...]) -> str:
    """The keys that `compare_config` finds, except those that start as `free` says, with both values; "" for none."""
    keys = [key for key in compare_config(saved, current) if not key.startswith(free)]
    return "; ".join(f"{key}: {config_value(saved, key)!r} there, {config_value(current, key)!r} here" for key in keys)


def config_value(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key, as `compare_config` names them; "absent" where there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part, "absent") if isinstance(value, Mapping) else "absent"
    return value


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix[:-1]: tree} if prefix else {}
    return {key: value for name, part in tree.items() for key, value in _flatten(part, f"{prefix}{name}.").items()}


def file_name(text: str) -> str:
    """`text` as a name that every file system takes."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """The names of `known` that are most like `word`, for an error message; all of them where none is like it."""
    known = [str(name) for name in known]
    return ", ".join(difflib.get_close_matches(str(word), known, n=count) or known)


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines whose columns are aligned on the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
