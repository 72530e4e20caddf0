"""A sweep from its config to its results: search, selection on the validation split, seeds, and the test at the end."""

import collections
import contextlib
import json
import logging
import os
import pathlib
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from glm_jax.files import file_name, nearest, write_json_atomic
from glm_jax.sweeps import summary
from glm_jax.sweeps.folder import COMPLETE, SweepFolder
from glm_jax.sweeps.jobs import Testing, Training
from glm_jax.sweeps.pool import Pool
from glm_jax.sweeps.search import TPE, Fixed, Source, check_search, fixed_trials
from glm_jax.sweeps.space import HUB, SEARCHES, WHOLE, Candidate, Shard, SweepError, Trial, candidates_of, trial_config
from glm_jax.training.run_lock import RunLock
from glm_jax.tuning.run import checked_tasks

logger = logging.getLogger(__name__)

WAIT_LOG_SECONDS = 60


def sweep(
    config: ConfigDict, workdir: str | os.PathLike, shard: Shard = WHOLE, command: str | None = None
) -> dict[str, Any]:
    """Runs a sweep in `workdir`; the same call goes on with one that stopped, and repeats no finished trial.

    Every candidate's hyperparameters are searched on the validation split, with the first seed. Then the best setting
    of each is trained with the other seeds. Only when all of these have ended, the test split is scored.

    Args:
      config: `glm_jax.config.sweep()` with changes, or what a file of configs/sweep/ returns.
      workdir: folder of the sweep, on a local disk or NFS; see `sweeps.folder`.
      shard: of several machines that run it together, each with its own; a trial's name decides who runs it. They wait
        for each other between the stages.
      command: what started it, for the report.

    Returns:
      The contents of workdir/results.json; see `sweeps.summary`.

    Raises:
      ValueError (SweepError, TaskError): a config or folder that cannot be used, before anything is trained; a sweep
        of whose candidates none could be trained.
    """
    if config.get("kind") != "sweep":
        raise SweepError("this config is of one run: take one of configs/sweep/, or start the verb finetune with it")
    config = config.copy_and_resolve_references()
    candidates = check(config)
    _check_checkpoints(config, candidates)
    if shard.count > 1 and config.search == "tpe":
        raise SweepError("TPE proposes one trial after another: several machines can share a grid or a random search")
    folder = SweepFolder(pathlib.Path(workdir))
    folder.claim(config)
    with RunLock(folder.path / "shards" / str(shard.index) if shard.count > 1 else folder.path), _terminable():
        if (results := folder.results(config.seeds)) is not None:
            logger.info("%s is complete: its results are returned", folder.path)
            return results
        with Pool(config.workers, folder.programs) as pool:
            return _stages(config, folder, candidates, pool, shard, command)


def check(config: ConfigDict) -> list[Candidate]:
    """The candidates of a sweep whose config is valid: configs of trials are made, their tasks and splits read.

    Raises SweepError, and what `tuning.run.checked_tasks` does.
    """
    if config.search not in SEARCHES:
        raise SweepError(f"unknown search {config.search!r}; nearest: {nearest(config.search, SEARCHES)}")
    seeds = tuple(config.seeds or ())
    if not seeds or len(set(seeds)) < len(seeds):
        raise SweepError(f"seeds {seeds} must be different numbers, at least one")
    if config.workers is not None and config.workers < 1:
        raise SweepError(f"workers {config.workers} must be at least 1; None chooses")
    base = config.base
    if base.test_split is None or base.test_split == base.validation_split:
        raise SweepError(
            f"base.test_split {base.test_split!r} must be another split than base.validation_split "
            f"{base.validation_split!r}, on which settings are chosen: a score that was chosen is no test"
        )
    if base.train_split == base.test_split:
        raise SweepError(f"base.train_split {base.train_split!r} is the test split: what was learned is no test")
    candidates = candidates_of(config)
    check_search(config.search, config.trials, candidates)
    checked: set[str] = set()
    for candidate in candidates:
        axes = {key: axis if isinstance(axis, tuple) else (axis.low,) for key, axis in candidate.space.items()}
        first = {key: values[0] for key, values in axes.items()}
        # One axis at a time: what one alone makes invalid is found without trying all combinations.
        points = [first] + [first | {key: value} for key, values in axes.items() for value in values[1:]]
        for point in points:
            try:
                trial = trial_config(config, {**candidate.changes, **point})
                with trial.ignore_type():
                    trial.test_split = base.test_split
                if (key := json.dumps(trial.to_dict(), default=str, sort_keys=True)) not in checked:
                    checked.add(key)
                    checked_tasks(trial)
            except ValueError as error:
                raise type(error)(f"candidate {candidate.name}: {error}") from None
    return candidates


def _check_checkpoints(config, candidates):
    """Raises SweepError for a candidate whose checkpoint is not there."""
    for candidate in candidates:
        if candidate.baseline is None and HUB not in (*candidate.changes, *candidate.space):
            searched = candidate.space.get("init_from", ())
            for path in searched or (candidate.changes.get("init_from", config.base.init_from),):
                if not pathlib.Path(path).exists():
                    raise SweepError(f"candidate {candidate.name}: init_from {path} does not exist: train it first")


def _stages(config, folder, candidates, pool, shard, command):
    trained = [candidate for candidate in candidates if candidate.baseline is None]
    logger.info("search: %d candidates, %d worker(s)", len(trained), len(pool))
    sources = [_source(config, folder, candidate, shard) for candidate in trained]
    pool.run(Training(config, folder, sources, len(pool)))
    if shard.count > 1:
        searched = [trial for candidate in trained for trial in _fixed(config, candidate)]
        _wait("trials", lambda: [trial.name for trial in searched if folder.record(trial) is None])

    if shard.index:
        _wait("the selection", lambda: [] if folder.selection() else ["selection.json"])
    selection = folder.selection() or _select(config, folder, trained)
    chosen = [
        Trial(candidate.name, {**selection[candidate.name]["changes"], "seed": seed})
        for candidate in trained
        if candidate.name in selection
        for seed in config.seeds
    ]
    logger.info("seeds: the chosen setting of %d candidates, %d seeds each", len(selection), len(config.seeds))
    pool.run(Training(config, folder, [Fixed([t for t in chosen if shard.owns(t.name)])], len(pool)))
    _wait("trials", lambda: [trial.name for trial in chosen if folder.record(trial) is None])
    if not config.keep_checkpoints and not shard.index:
        _drop_checkpoints(folder, chosen)

    logger.info("test: the split %r is scored now, for the first time", config.base.test_split)
    complete = [trial for trial in chosen if (folder.record(trial) or {}).get("status") == COMPLETE]
    baselines = [candidate for candidate in candidates if candidate.baseline is not None]
    tests = Testing(config, folder, complete, baselines, shard)
    pool.run(tests)
    _wait("tests", tests.missing)
    if shard.index:
        _wait("the results", lambda: [] if folder.results(config.seeds) else ["results.json"])
        return folder.results()
    results = summary.summarize(config, folder, candidates, selection) | {"command": command}
    write_json_atomic(folder.path / "results.json", results)
    return results


def _source(config, folder, candidate, shard) -> Source:
    if config.search == "tpe" and candidate.space:
        journal = folder.path / "search" / f"{file_name(candidate.name)}.journal"
        return TPE(candidate, config.trials, config.search_seed, config.seeds[0], journal)
    return Fixed([trial for trial in _fixed(config, candidate) if shard.owns(trial.name)])


def _fixed(config, candidate):
    search = config.search if candidate.space else "grid"
    return fixed_trials(candidate, search, config.trials, config.search_seed, config.seeds[0])


def _wait(what, missing):
    """Until other machines have done their share."""
    told = 0.0
    while names := missing():
        if time.monotonic() - told > WAIT_LOG_SECONDS:
            logger.info("waiting for %s of other machines: %d left, such as %s", what, len(names), names[0])
            told = time.monotonic()
        time.sleep(1)


def _select(config, folder, trained):
    """The best complete trial of each candidate, as the validation split has it; of equal ones the first in the space.

    TPE has no such order: there it is the first that ended.
    """
    records = collections.defaultdict(list)
    for record in folder.records():
        records[record["candidate"]].append(record)
    selection = {}
    for candidate in trained:
        complete = [record for record in records[candidate.name] if record["status"] == COMPLETE]
        if not complete:
            logger.warning("%s: no trial was trained to its end, so it has no test", candidate.name)
            continue
        listed = config.search != "tpe" or not candidate.space
        names = [trial.name for trial in _fixed(config, candidate)] if listed else []
        place = {name: number for number, name in enumerate(names)}

        def rank(record, place=place):
            name = Trial(record["candidate"], record["changes"]).name
            return -record["score"], place.get(name, len(place)), record["ended_at"]

        best = min(complete, key=rank)
        selection[candidate.name] = {
            "changes": best["changes"],
            "validation": best["score"],
            "trials": dict(collections.Counter(record["status"] for record in records[candidate.name])),
            "selected_at": time.time(),
        }
    if trained and not selection:
        errors = [f"{record['candidate']}: {record['error']}" for record in folder.records() if "error" in record]
        raise SweepError(f"no candidate could be trained; {errors[0] if errors else 'no trial has ended'}")
    write_json_atomic(folder.path / "selection.json", selection)
    return selection


def _drop_checkpoints(folder, chosen):
    kept = {trial.name for trial in chosen}
    for path in folder.path.glob("trials/*"):
        if path.name not in kept:
            shutil.rmtree(path / "checkpoints", ignore_errors=True)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the sweep as Ctrl-C does: workers save their trials."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        logger.warning("stopped: trials have saved what they did; the same command goes on from there")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
