"""What all verbs share: log lines for people, and one-line endings for problems that the user can mend."""

import contextlib
import ctypes
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


def keep_freed_memory() -> None:
    """Lets glibc reuse freed memory instead of returning it to the system. Call it before JAX starts its threads.

    XLA's CPU backend frees its buffers in every step. glibc gives large ones back, and their pages fault in again: on
    two cores that was a third of the step. The process keeps its peak memory instead. Nothing is changed on machines
    with an accelerator, and on systems other than Linux.
    """
    accelerators = ("nvidia[0-9]*", "accel*", "vfio/[0-9]*", "kfd")
    if sys.platform != "linux" or any(any(pathlib.Path("/dev").glob(pattern)) for pattern in accelerators):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        # M_MMAP_MAX, M_TRIM_THRESHOLD (never), M_ARENA_MAX, M_TOP_PAD: room beside a step's buffer for what small
        # allocations take of it in between, or the next step finds no place that is large enough.
        for parameter, value in ((-4, 0), (-1, -1), (-8, 1), (-2, 2**30)):
            mallopt(parameter, value)
