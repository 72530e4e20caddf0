"""Rows to host batches, with Grain: order, shuffling, sharding over processes, and exact resume.

Everything follows from one number, the global example index: example e of a run is the same row for any batch size,
number of processes and point of resume, and the corruption draws its randomness from e.
"""

import collections
import concurrent.futures
import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from glm_jax.data.errors import DataError
from glm_jax.data.packing import Mixture, PackedRows

_ENDLESS = 1 << 62
_worker_batches: Any = None  # of a process that does nothing but make batches
HostBatch = dict[str, np.ndarray]


def train_iterator(
    rows: PackedRows | Mixture,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    start: int = 0,
    threads: int = 2,
    prefetch: int = 64,
    workers: int = 0,
) -> "TrainIterator":
    """Endless training batches of this process.

    Each batch is {"tokens": int32 [b L], "lengths": int32 [b], "index": uint32 [b]} with b = batch_size /
    process_count; process p holds the rows [p b, (p + 1) b) of the global batch. `index` is the global example index,
    step * batch_size + row, counted through all epochs (modulo 2**32). Every epoch is shuffled differently. Other
    arrays of a row are batched under their names.

    Args:
      rows: what to read; a `Mixture` interleaves its parts by their weights, always in the same way.
      batch_size: examples of the global batch.
      seed: of the order.
      process_index, process_count: which share of each batch to make.
      start: first global example index; `set_state` sets it too.
      threads: threads that make batches ahead; 0 makes them in the caller's. Python runs one at a time: more of them
        help where reading waits, not where it computes.
      prefetch: rows made ahead, rounded up to whole batches, at least one a thread.
      workers: processes that make batches instead; 0: none. They start with the first batch, for which a script needs
        its `if __name__ == "__main__"`, and end with `close`.

    Raises:
      DataError: there are no rows, the batch cannot be divided among the processes, or `workers` is negative.
    """
    return TrainIterator(rows, batch_size, seed, process_index, process_count, start, threads, prefetch, workers)


class TrainIterator:
    """Iterator of `train_iterator`, with a state that fits any batch size and number of processes."""

    def __init__(self, rows, batch_size, seed, process_index, process_count, start, threads, prefetch, workers):
        self._local = _local_batch(batch_size, process_index, process_count)
        if not len(rows):
            raise DataError("there are no rows to train on")
        if not 0 <= seed < 2**32:
            raise DataError(f"seed must lie in [0, 2**32), not {seed}")
        if workers < 0:
            raise DataError(f"workers must be 0 or more, not {workers}")
        self._batch_size, self._seed, self._process_index = batch_size, seed, process_index
        self._threads, self._prefetch, self._workers = threads, prefetch, workers
        self._rows_fingerprint = rows.fingerprint()
        self._rows = rows
        self._batches = None
        self._seek(start)

    def _seek(self, start: int) -> None:
        if start < 0:
            raise DataError(f"the first example index must not be negative, but is {start}")
        self.close()
        self._next = start

    def _open(self):
        import grain

        first = self._next + self._process_index * self._local
        batches = _LocalBatches(self._rows, self._seed, first, self._batch_size, self._local)
        ahead = max(self._threads, -(-self._prefetch // self._local))
        if self._workers:
            return _made_by_processes(batches, self._workers, max(ahead, 2 * self._workers))
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=ahead if self._threads else 0)
        return iter(grain.MapDataset.source(batches).to_iter_dataset(options))

    def close(self) -> None:
        """Ends the threads or processes that make batches ahead; the next batch would start them again."""
        if self._batches is not None:
            self._batches.close()
        self._batches = None

    def __iter__(self) -> "TrainIterator":
        return self

    def __next__(self) -> HostBatch:
        if self._batches is None:
            self._batches = self._open()
        batch = next(self._batches)
        self._next += self._batch_size
        return batch

    def get_state(self) -> dict[str, Any]:
        """Where the next batch begins, as JSON; the same on all processes."""
        return {"next_example": self._next, "seed": self._seed, "rows": self._rows_fingerprint}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on exactly where `get_state` was taken.

        Raises:
          DataError: the state belongs to another seed or to other rows.
        """
        if state["seed"] != self._seed:
            raise DataError(f"the run to go on with has data seed {state['seed']}, not {self._seed}: set it back")
        if state["rows"] != self._rows_fingerprint:
            raise DataError(
                "the run to go on with was trained on other rows (its corpus, tokenizer or sequence length differs): "
                "set the data options back, or start a new run from its parameters"
            )
        self._seek(int(state["next_example"]))


class _LocalBatches:
    """The batches of one process, by step. Grain is asked for whole batches, because it takes its time for each."""

    def __init__(self, rows, seed, first, batch_size, local):
        self._rows, self._seed, self._first, self._batch_size, self._local = rows, seed, first, batch_size, local

    @functools.cached_property
    def _order(self):
        return row_order(self._rows, self._seed)

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, step: int) -> HostBatch:
        first = self._first + step * self._batch_size
        return _stack([_example(self._rows[self._order[i]], i) for i in range(first, first + self._local)])


def _made_by_processes(batches: _LocalBatches, workers: int, ahead: int) -> Iterator[HostBatch]:
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_begin_worker, initargs=(batches,)
    )
    try:
        coming = collections.deque(pool.submit(_make_batch, step) for step in range(ahead))
        for step in itertools.count(ahead):
            yield coming.popleft().result()
            coming.append(pool.submit(_make_batch, step))
    except concurrent.futures.process.BrokenProcessPool as error:
        raise DataError(
            f"one of {workers} processes that make batches has died: if memory ran out, take fewer data.loader_workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker(batches: _LocalBatches) -> None:
    """A worker ends when the run ends it or is gone, and not by what is sent to all processes of a group.

    After Ctrl-C or SIGTERM a run still makes its steps up to the one that is saved.
    """
    global _worker_batches
    _worker_batches = batches
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _make_batch(step: int) -> HostBatch:
    return _worker_batches[step]


def row_order(rows: PackedRows | Mixture, seed: int) -> Any:
    """A Grain dataset, row numbers by global example index, without end: a new permutation of the rows each epoch."""
    import grain

    def shuffled(first, count, seed):
        return grain.MapDataset.range(first, first + count).seed(seed).shuffle().repeat()

    if not isinstance(rows, Mixture):
        return shuffled(0, len(rows), seed)
    seeds = np.random.SeedSequence(seed).generate_state(len(rows.parts)).tolist()
    counts = [len(part) for part in rows.parts]
    firsts = itertools.accumulate(counts[:-1], initial=0)
    parts = [shuffled(*each) for each in zip(firsts, counts, seeds, strict=True)]
    return grain.MapDataset.mix(parts, rows.weights)


def validation_batches(
    rows: PackedRows,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    max_batches: int | None = None,
) -> Iterator[HostBatch]:
    """One pass over the validation rows in fixed order, in batches as those of `train_iterator`.

    The last batch is filled up with rows of length 0, so that every process gets the same number of batches. `index` is
    the row number, so a row is corrupted alike in every evaluation.

    Args:
      max_batches: take no more batches, of rows spread evenly over the set.

    Raises:
      DataError: there are no rows, or the batch cannot be divided among the processes.
    """
    local = _local_batch(batch_size, process_index, process_count)
    if not len(rows):
        raise DataError("there are no rows to validate on")
    if max_batches is not None and max_batches < 1:
        raise DataError(f"max_batches must be at least 1 or None, not {max_batches}")
    count = len(rows) if max_batches is None else min(len(rows), max_batches * batch_size)
    return _validation_batches(rows, count, batch_size, local, process_index)


def _validation_batches(rows, count, batch_size, local, process_index):
    for first in range(process_index * local, _round_up(count, batch_size), batch_size):
        yield _stack([_validation_example(rows, number, count) for number in range(first, first + local)])


def _validation_example(rows, number, count):
    if number < count:
        index = number * len(rows) // count
        return _example(rows[index], index)
    padding = {"tokens": np.full(rows.sequence_length, rows.pad, np.int32), "length": np.int32(0)}
    return _example(padding, len(rows) + number - count)


def _example(row: dict[str, np.ndarray], index: int) -> HostBatch:
    renamed = {"lengths" if name == "length" else name: array for name, array in row.items()}
    return {**renamed, "index": np.uint32(index % 2**32)}


def _stack(examples: list[HostBatch]) -> HostBatch:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _local_batch(batch_size: int, process_index: int, process_count: int) -> int:
    if not 0 <= process_index < process_count:
        raise DataError(f"process_index {process_index} is not one of {process_count} processes")
    if batch_size < 1 or batch_size % process_count:
        raise DataError(f"batch_size {batch_size} must be a positive multiple of the {process_count} processes")
    return batch_size // process_count


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
