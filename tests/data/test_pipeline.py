import contextlib
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from glm_jax.data import DataError, train_iterator, validation_batches
from glm_jax.data.packing import ContiguousRows, Mixture


@pytest.fixture(scope="module")
def rows(documents):
    return make_rows(documents, 0)


def make_rows(documents, offset, count=37):
    """Rows of 5 tokens, each with its own: [1, x, x, x, 2] with x = 10 + offset + row number."""
    store = documents([[10 + offset + i] * 3 for i in range(count)])
    return ContiguousRows(store, sequence_length=5, cls=1, eos=2, pad=0)


def take(count, rows, **options):
    return list(itertools.islice(train_iterator(rows, **({"seed": 3} | options)), count))


def join(batches):
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


def test_batches(rows):
    (batch,) = take(1, rows, batch_size=4)
    described = {name: (array.shape, str(array.dtype)) for name, array in batch.items()}
    assert described == {"tokens": ((4, 5), "int32"), "lengths": ((4,), "int32"), "index": ((4,), "uint32")}


def test_each_epoch_holds_every_row_once_in_a_new_order(rows):
    examples = join(take(37 * 3, rows, batch_size=1))
    np.testing.assert_array_equal(examples["index"], np.arange(111))
    epochs = examples["tokens"][:, 1].reshape(3, 37)
    for epoch in epochs:
        assert sorted(epoch) == list(range(10, 47))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert tuple(epochs[0]) != tuple(range(10, 47))
    other = join(take(37, rows, batch_size=1, seed=4))["tokens"][:, 1]
    assert sorted(other) == sorted(epochs[0])
    assert (other != epochs[0]).any()


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("batch_size", [2, 8, 24])
def test_the_stream_depends_neither_on_batch_size_nor_on_threads(rows, batch_size, threads):
    expected = join(take(96, rows, batch_size=1))
    assert_same(join(take(96 // batch_size, rows, batch_size=batch_size, threads=threads)), expected)


@pytest.mark.thorough
def test_workers_make_the_same_batches(embedded):
    """Also after a jump, for which they begin anew."""
    rows = embedded.train_rows
    expected = take(9, rows, batch_size=8)
    with contextlib.closing(train_iterator(rows, batch_size=8, seed=3, workers=2)) as iterator:
        assert_same(join([next(iterator) for _ in range(9)]), join(expected))
        iterator.set_state({**iterator.get_state(), "next_example": 32})
        assert_same(join([next(iterator) for _ in range(5)]), join(expected[4:]))


_WITH_WORKERS = """
import multiprocessing, os, signal, sys
from glm_jax import data

if __name__ == "__main__":
    spec = {"corpora": [{"source": "bible"}], "sequence_length": 128, "data_dir": sys.argv[1], "tokenize_workers": 0}
    batches = data.train_iterator(data.load(spec).train_rows, batch_size=8, seed=0, workers=2)
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["killed", "forgotten"])
def test_workers_do_not_outlive_the_run(embedded, embedded_folder, how):
    done = subprocess.run(
        [sys.executable, "-c", _WITH_WORKERS, embedded_folder, how], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == (-signal.SIGKILL if how == "killed" else 0), done.stderr
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{pid}") for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_dead_worker_is_named(embedded):
    with contextlib.closing(train_iterator(embedded.train_rows, batch_size=8, seed=3, workers=1)) as iterator:
        next(iterator)
        for child in multiprocessing.active_children():
            child.kill()
        with pytest.raises(DataError, match="1 processes that make batches has died: if memory ran out"):
            list(itertools.islice(iterator, 200))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_hold_consecutive_parts_of_the_same_batches(rows, count):
    whole = take(7, rows, batch_size=8)
    parts = [take(7, rows, batch_size=8, process_index=p, process_count=count) for p in range(count)]
    for step, batch in enumerate(whole):
        assert_same(join([part[step] for part in parts]), batch)


def test_resume_is_exact_and_fits_any_layout(rows):
    iterator = train_iterator(rows, batch_size=8, seed=3)
    for _ in range(6):  # into the second epoch
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    following = [next(iterator) for _ in range(6)]
    again = train_iterator(rows, batch_size=8, seed=3)
    next(again)
    again.set_state(state)
    assert_same(join([next(again) for _ in range(6)]), join(following))
    parts = [train_iterator(rows, batch_size=4, seed=3, process_index=p, process_count=2) for p in range(2)]
    for part in parts:
        part.set_state(state)
    batches = [join([next(part) for part in parts]) for _ in range(12)]
    assert_same(join(batches), join(following))
    assert parts[0].get_state() == parts[1].get_state() == iterator.get_state()
    assert_same(join(take(6, rows, batch_size=8, start=48)), join(following))


def test_a_state_of_another_run_is_refused(rows, documents):
    state = train_iterator(rows, batch_size=8, seed=3).get_state()
    with pytest.raises(DataError, match="has data seed 3, not 4"):
        train_iterator(rows, batch_size=8, seed=4).set_state(state)
    with pytest.raises(DataError, match="trained on other rows"):
        train_iterator(make_rows(documents, 1), batch_size=8, seed=3).set_state(state)


def test_mixtures_keep_their_weights_and_their_parts_their_epochs(documents):
    small, large = make_rows(documents, 0, 10), make_rows(documents, 100, 50)
    mixture = Mixture([small, large], [3, 1])
    tokens = join(take(100, mixture, batch_size=4))["tokens"][:, 1]
    from_small = tokens < 100
    assert from_small.sum() == 300
    for start in range(0, 400, 40):  # evenly, not only on the whole
        assert abs(from_small[start : start + 40].sum() - 30) <= 1
    for epoch in tokens[from_small].reshape(-1, 10):
        assert sorted(epoch) == list(range(10, 20))
    assert sorted(tokens[~from_small][:50]) == list(range(110, 160))
    assert_same(join(take(13, mixture, batch_size=8, start=7)), join(take(104, mixture, batch_size=1, start=7)))


def test_the_index_wraps(rows):
    (batch,) = take(1, rows, batch_size=4, start=2**32 - 2)
    assert batch["index"].tolist() == [2**32 - 2, 2**32 - 1, 0, 1]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_validation_is_one_pass_in_order_with_equal_batches(rows, count):
    parts = [list(validation_batches(rows, batch_size=8, process_index=p, process_count=count)) for p in range(count)]
    assert [len(part) for part in parts] == [5] * count
    steps = [join([part[step] for part in parts]) for step in range(5)]
    everything = join(steps)
    np.testing.assert_array_equal(everything["index"], np.arange(40))
    np.testing.assert_array_equal(everything["tokens"][:37, 1], np.arange(10, 47))
    np.testing.assert_array_equal(everything["lengths"], [5] * 37 + [0] * 3)
    assert (everything["tokens"][37:] == 0).all()
    assert (everything["tokens"].dtype, everything["lengths"].dtype) == (np.int32, np.int32)
    assert everything["index"].dtype == np.uint32


def test_validation_on_a_part_is_spread_evenly(rows):
    everything = join(list(validation_batches(rows, batch_size=4, max_batches=2)))
    assert everything["index"].tolist() == [0, 4, 9, 13, 18, 23, 27, 32]
    np.testing.assert_array_equal(everything["tokens"][:, 1], everything["index"] + 10)
    assert len(list(validation_batches(rows, batch_size=4, max_batches=99))) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 6, "process_count": 4}, "batch_size 6 must be a positive multiple of the 4 processes"),
        ({"batch_size": 0}, "batch_size 0 must be"),
        ({"batch_size": 4, "process_index": 2, "process_count": 2}, "process_index 2 is not one of 2"),
    ],
)
def test_batches_that_cannot_be_divided(rows, options, message):
    with pytest.raises(DataError, match=message):
        train_iterator(rows, seed=0, **options)
    with pytest.raises(DataError, match=message):
        validation_batches(rows, **options)


def test_bad_arguments(rows):
    with pytest.raises(DataError, match="seed must lie"):
        train_iterator(rows, batch_size=1, seed=-1)
    with pytest.raises(DataError, match="must not be negative"):
        train_iterator(rows, batch_size=1, seed=0, start=-1)
    with pytest.raises(DataError, match="max_batches"):
        validation_batches(rows, batch_size=1, max_batches=0)
