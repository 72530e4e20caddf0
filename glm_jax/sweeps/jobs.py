"""What a sweep gives its workers: trials that a search asks for, and tests of those that were chosen."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from glm_jax.files import write_json_atomic
from glm_jax.sweeps.folder import COMPLETE, FAILED, PRUNED, TEST_ERROR, SweepFolder, is_tested
from glm_jax.sweeps.search import Median, Source
from glm_jax.sweeps.space import HUB, WHOLE, Candidate, Shard, Trial, describe_changes, trial_config
from glm_jax.sweeps.worker import BASELINE, TEST, TRAIN, Job
from glm_jax.training.metric_writer import duration, read_metrics

logger = logging.getLogger(__name__)


class Training:
    """The trials of some sources, as a pool's jobs. A trial that has ended is not run again, unless it failed.

    One whose process died, perhaps for want of memory, is tried once more at the end.
    """

    def __init__(self, config: ConfigDict, folder: SweepFolder, sources: Sequence[Source], workers: int):
        self._config, self._folder, self._sources, self._workers = config, folder, list(sources), workers
        self._median = Median() if config.prune else None
        self._running: dict[str, tuple[Source, Trial]] = {}
        self._again: list[tuple[Source, Trial]] = []
        self._retried: set[str] = set()
        self._expected = sum(source.expected for source in sources)
        self._ended = self._failed = self._timed = 0
        self._seconds = 0.0
        self._best: dict[str, float] = {}

    def next(self) -> Job | None:
        """See `pool.Jobs`."""
        for source in self._sources:
            while (trial := source.ask()) is not None:
                record = self._folder.record(trial)
                if record is not None and record["status"] != FAILED:
                    self._ended += 1
                    self._take_score(record)
                    source.tell(trial, record)
                    continue
                return self._start(source, trial)
        return self._start(*self._again.pop()) if self._again else None

    def _start(self, source, trial):
        path = self._folder.trial(trial)
        self._running[path.name] = source, trial
        options = _hub_option(trial) | {"metric": self._config.metric}
        return Job(TRAIN, path, trial_config(self._config, trial.changes), options)

    def score(self, job: Job, step: int, value: float) -> bool:
        """See `pool.Jobs`."""
        return self._median is None or self._median.keeps(self._running[job.folder.name][1], step, value)

    def end(self, job: Job, result: Mapping[str, Any]) -> None:
        """See `pool.Jobs`."""
        source, trial = self._running.pop(job.folder.name)
        if result.get("died") and trial.name not in self._retried:
            self._retried.add(trial.name)
            self._again.append((source, trial))
            logger.warning("%s: %s; it is tried again", trial.candidate, result["error"])
            return
        record = self._folder.finish(trial, self._record(job, result))
        _show_in_tensorboard(self._folder, trial, record)
        source.tell(trial, record)
        self._ended += 1
        self._timed += 1
        self._seconds += result.get("wall_seconds", 0.0)
        self._say(trial, record)

    def _record(self, job, result):
        if "error" in result:
            return {"status": FAILED, "error": result["error"]}
        metric = f"validation_{self._config.metric or 'score'}"
        lines = read_metrics(job.folder / "metrics.jsonl")
        scored = [line for line in lines if line.get("validation_score") is not None]
        if not scored:
            return {"status": FAILED, "error": "the run ended without a validation: set base.eval_every"}
        best = max(scored, key=lambda line: (line["validation_score"], -line["step"]))
        timed = [line for line in lines if "seconds_per_step" in line]
        steps = [0, *(line["step"] for line in timed)]
        return {
            "status": PRUNED if result.get("pruned") else COMPLETE,
            "score": best[metric],
            "best_step": best["step"],
            "training_seconds": sum(
                line["seconds_per_step"] * (line["step"] - before) for before, line in zip(steps, timed, strict=False)
            ),
            "wall_seconds": result["wall_seconds"],
            "compiled": result["compiled"],
        }

    def _take_score(self, record):
        if record["status"] == COMPLETE:
            name = record["candidate"]
            self._best[name] = max(record["score"], self._best.get(name, record["score"]))

    def _say(self, trial, record):
        self._take_score(record)
        what = f"{trial.candidate}, seed {trial.changes['seed']}: {describe_changes(trial.changes)}"
        if record["status"] == FAILED:
            self._failed += 1
            outcome = f"failed: {record['error']}"
        else:
            pruned = ", pruned" if record["status"] == PRUNED else ""
            outcome = f"validation {record['score']:.2f}{pruned} in {duration(record['wall_seconds'])}"
        left = (self._expected - self._ended) * self._seconds / max(self._timed, 1) / self._workers
        best = max(self._best, key=self._best.__getitem__, default=None)
        note = f"; best {best} {self._best[best]:.2f}" if best is not None else ""
        failed = f", {self._failed} failed" if self._failed else ""
        logger.info(
            "[%d/%d%s] %s -> %s%s; left %s", self._ended, self._expected, failed, what, outcome, note, duration(left)
        )


def _hub_option(trial):
    return {HUB: trial.changes[HUB]} if HUB in trial.changes else {}


def _show_in_tensorboard(folder, trial, record):
    """The trial as a row of TensorBoard's HParams tab."""
    from tensorboardX import SummaryWriter

    if record["status"] == COMPLETE:
        plain = str | int | float | bool | None
        values = {key: value if isinstance(value, plain) else str(value) for key, value in trial.changes.items()}
        with SummaryWriter(str(folder.path / "tensorboard")) as board:
            board.add_hparams({"candidate": trial.candidate, **values}, {"validation": record["score"]}, trial.name)


class Testing:
    """The tests of chosen trials and the baselines, as a pool's jobs; those that are done are not done again."""

    def __init__(
        self, config: ConfigDict, folder: SweepFolder, trials: Sequence[Trial], baselines: Sequence[Candidate],
        shard: Shard = WHOLE,
    ):  # fmt: skip
        split = {"split": config.base.test_split}
        jobs = [
            Job(
                TEST,
                folder.trial(trial),
                trial_config(config, trial.changes),
                split | {"name": trial.candidate} | _hub_option(trial),
            )
            for trial in trials
        ]
        plain = trial_config(config, {})
        jobs += [
            Job(BASELINE, folder.baseline(each.name), plain, split | {"name": each.name, "baseline": each.baseline})
            for each in baselines
        ]
        self._all = [job.folder for job in jobs]
        self._waiting = [job for job in jobs if shard.owns(job.folder.name) and not is_tested(job.folder)]
        for job in self._waiting:  # one that failed before is tried again
            (job.folder / TEST_ERROR).unlink(missing_ok=True)

    def missing(self) -> list[str]:
        """The folders whose test has not ended yet, here or on another machine."""
        return [str(path) for path in self._all if not is_tested(path) and not (path / TEST_ERROR).exists()]

    def next(self) -> Job | None:
        """See `pool.Jobs`."""
        return self._waiting.pop(0) if self._waiting else None

    def score(self, job: Job, step: int, value: float) -> bool:
        """See `pool.Jobs`."""
        return True

    def end(self, job: Job, result: Mapping[str, Any]) -> None:
        """See `pool.Jobs`."""
        if "error" in result:
            write_json_atomic(job.folder / TEST_ERROR, {"error": result["error"]})
            logger.warning("test of %s failed: %s", job.options["name"], result["error"])
