"""What all verbs share: log lines for people, and one-line endings for problems that the user can mend."""

import contextlib
import logging
import pathlib
import sys
import traceback

_PACKAGE = pathlib.Path(__file__).parent


def log_to_stderr() -> None:
    """Shows the project's log lines, and only warnings of its libraries."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    for noisy in ("absl", "jax", "orbax", "tensorflow_datasets", "matplotlib", "etils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("absl").addFilter(_worth_telling)


def _worth_telling(record: logging.LogRecord) -> bool:
    """Orbax warns that a folder which was opened for reading is read only."""
    return not any(words in record.getMessage() for words in ("read_only=True", "is read only"))


@contextlib.contextmanager
def one_line_errors():
    """Ends the process with one line for an error that this package raised; anything else keeps its traceback."""
    try:
        yield
    except (ValueError, RuntimeError, FloatingPointError, OSError) as error:
        raised_in = pathlib.Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if _PACKAGE not in raised_in.parents and not isinstance(error, OSError):
            raise
        sys.exit(f"{type(error).__name__}: {error}")
