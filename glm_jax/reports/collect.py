"""The predictions of a sweep, read from its files and compared: what a report shows beside results.json."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from glm_jax.reports.statistics import bootstrap_interval, calibration_error, seed_interval
from glm_jax.sweeps.folder import COMPLETE, SweepFolder
from glm_jax.sweeps.space import SweepError, value_text
from glm_jax.sweeps.summary import predictions
from glm_jax.training.metric_writer import read_metrics


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A row of a sweep's results with what its predictions say.

    Attributes:
      row: of results.json.
      correct: 100 for each right answer, by seed and example; None where answers are not right or wrong.
      interval: 95 %, of the mean.
      difference: (mean, low, high) against the best; None for the best itself, and where there is no interval.
      predictions: the first seed's rows.
    """

    row: Mapping[str, Any]
    correct: Float[np.ndarray, "S N"] | None
    interval: tuple[float, float] | None
    difference: tuple[float, float, float] | None
    predictions: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """For tables."""
        return self.row["name"]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A complete sweep: `results` as results.json has them, and the candidates that were tested, best first."""

    path: pathlib.Path
    results: Mapping[str, Any]
    candidates: list[Candidate]

    @property
    def failed(self) -> list[Mapping[str, Any]]:
        """Rows without a test."""
        return [row for row in self.results["rows"] if not row["runs"]]

    @property
    def is_classification(self) -> bool:
        """Whether every answer is right or wrong."""
        return all(candidate.correct is not None for candidate in self.candidates)


def read_sweep(path: pathlib.Path) -> Sweep:
    """Reads the folder of a complete sweep. Raises SweepError for any other."""
    folder = SweepFolder(path)
    folder.read_config()
    results = folder.results()
    if results is None:
        raise SweepError(f"the sweep {path} is not complete: run its command to the end, then report it")
    rows = sorted((row for row in results["rows"] if row["runs"]), key=lambda row: -row["mean"])
    tables = [
        [predictions(path / run["folder"] / "report", _task(row, results)) for run in row["runs"]] for row in rows
    ]
    correct = [_correct(seeds) if results["metric"] == "accuracy" else None for seeds in tables]
    candidates = []
    for row, seeds, right in zip(rows, tables, correct, strict=True):
        values = [run["value"] for run in row["runs"]]
        interval = seed_interval(values) if right is None else bootstrap_interval(right)
        candidates.append(Candidate(row, right, interval, _difference(rows[0], correct[0], row, right), seeds[0]))
    return Sweep(path, results, candidates)


def _task(row, results):
    """The task as files of predictions are named; baselines add their own name."""
    name = next(iter(row["runs"][0]["numbers"])).rpartition("/")[0]
    return name or results["task"]


def _correct(seeds):
    if any(row.get("label") is None for rows in seeds for row in rows):
        return None
    return np.array([[100.0 * (row["prediction"] == row["label"]) for row in rows] for rows in seeds])


def _difference(best, best_correct, row, correct):
    if row is best:
        return None
    mean = row["mean"] - best["mean"]
    if correct is not None and best_correct is not None:
        return (mean, *bootstrap_interval(correct, best_correct))
    ours, theirs = ({run["seed"]: run["value"] for run in each["runs"]} for each in (row, best))
    shared = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    interval = seed_interval(shared)
    return None if interval is None else (mean, *interval)


def confusion(candidate: Candidate) -> tuple[list[str], np.ndarray]:
    """The labels, and how often each (row) was answered by each (column), by the first seed."""
    rows = candidate.predictions
    labels = sorted({row["label"] for row in rows} | {row["prediction"] for row in rows})
    counts = np.zeros((len(labels), len(labels)), int)
    for row in rows:
        counts[labels.index(row["label"]), labels.index(row["prediction"])] += 1
    return labels, counts


def calibration(candidate: Candidate) -> tuple[float, list[tuple[float, float, int]]] | None:
    """See `calibration_error`, of the probabilities of the first seed's answers; None for answers without any."""
    rows = candidate.predictions
    if not rows or "scores" not in rows[0] or candidate.row.get("baseline") == "majority":  # counts
        return None
    scores = [np.array(list(row["scores"].values()), np.float64) for row in rows]
    confidence = np.array([np.exp(s.max() - np.logaddexp.reduce(s)) for s in scores])
    return calibration_error(confidence, candidate.correct[0] / 100)


def learning_curves(sweep: Sweep) -> dict[str, list[list[tuple[int, float]]]]:
    """(step, validation score) of each trained candidate's seeds."""
    curves = {}
    for candidate in sweep.candidates:
        if candidate.row["kind"] == "trained":
            runs = [read_metrics(sweep.path / run["folder"] / "metrics.jsonl") for run in candidate.row["runs"]]
            curves[candidate.name] = [
                [(line["step"], line["validation_score"]) for line in lines if "validation_score" in line]
                for lines in runs
            ]
    return curves


def sensitivity(sweep: Sweep, candidate: str) -> dict[str, dict[str, list[float]]]:
    """Hyperparameter -> its value, as text -> the validation scores of all finished trials of the search with it."""
    trials = searched(sweep, candidate)
    found: dict[str, dict[str, list[float]]] = {}
    keys = {key for trial in trials for key in trial["changes"]} - {"seed"}
    for key in sorted(keys):
        by_value: dict[str, list[float]] = {}
        for trial in sorted(trials, key=lambda trial: _order(trial["changes"].get(key))):
            by_value.setdefault(value_text(trial["changes"].get(key)), []).append(trial["score"])
        if len(by_value) > 1:
            found[key] = by_value
    return found


def searched(sweep: Sweep, candidate: str) -> list[Mapping[str, Any]]:
    """The finished trials of a candidate's search: those with the first seed."""
    first = sweep.results["config"]["seeds"][0]
    return [
        trial
        for trial in sweep.results["trials"]
        if trial["candidate"] == candidate and trial["status"] == COMPLETE and trial["changes"]["seed"] == first
    ]


def _order(value):
    return (0, value, "") if isinstance(value, int | float) else (1, 0, str(value))


def always_wrong(sweep: Sweep, count: int) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """Examples that every trained candidate's first seed gets wrong: a prediction row, and all answers by name."""
    trained = [candidate for candidate in sweep.candidates if candidate.row["kind"] == "trained"]
    found = []
    for number, row in enumerate(trained[0].predictions if trained else []):
        answers = {candidate.name: candidate.predictions[number]["prediction"] for candidate in trained}
        if all(answer != row["label"] for answer in answers.values()):
            found.append((row, answers))
    return found[:count]
