"""New folders that appear under their name only when they are complete."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator


def check_new(path: str | os.PathLike) -> None:
    """Raises ValueError for a path to which nothing can be exported because something is there."""
    path = pathlib.Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists: choose another folder, or remove it first")


@contextlib.contextmanager
def new_folder(path: pathlib.Path, replaces: Callable[[pathlib.Path], bool] | None = None) -> Iterator[pathlib.Path]:
    """A temporary folder that becomes `path` when the block ends without an error.

    Raises ValueError where something is at `path`, unless `replaces` says that it may be replaced.
    """
    old = path.is_dir() and replaces is not None and replaces(path)
    if not old:
        check_new(path)
    temporary = path.absolute().with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if old:
            aside = temporary.with_name(f"{temporary.name}.old")
            path.rename(aside)
            temporary.rename(path)
            shutil.rmtree(aside, ignore_errors=True)
            return
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
