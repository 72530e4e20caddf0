"""Log lines for people."""

import logging
from typing import TextIO

_NOISY = ("absl", "jax", "orbax", "tensorflow_datasets", "matplotlib", "etils")


def log_to(stream: TextIO | None = None) -> None:
    """Shows the project's log lines on a stream, by default stderr, and only warnings of its libraries."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True, stream=stream)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("absl").addFilter(_is_relevant)


def _is_relevant(record: logging.LogRecord) -> bool:
    """Drops Orbax's warning that a folder which was opened for reading is read only."""
    return not any(words in record.getMessage() for words in ("read_only=True", "is read only"))
