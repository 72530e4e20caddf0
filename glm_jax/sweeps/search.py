"""Which trials a sweep runs, in which order: grid, random, and TPE with pruning by Optuna."""

import collections
import importlib.util
import pathlib
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from glm_jax.sweeps.folder import COMPLETE, FAILED
from glm_jax.sweeps.space import Candidate, Range, SweepError, Trial, draws, grid

WARMUP_TRIALS = 3  # that run to their end before the first is pruned


class Median:
    """Prunes a trial whose best score so far is below the median of the other trials' best at the same step.

    The rule of Google Vizier (Golovin et al. 2017), for each candidate by itself.
    """

    def __init__(self):
        self._best: dict[str, dict[str, dict[int, float]]] = collections.defaultdict(dict)

    def keeps(self, trial: Trial, step: int, score: float) -> bool:
        """Takes a score; whether the trial should go on."""
        others = self._best[trial.candidate]
        mine = others.setdefault(trial.name, {})
        mine[step] = max([score, *mine.values()])
        rivals = [scores[step] for name, scores in others.items() if name != trial.name and step in scores]
        return len(rivals) < WARMUP_TRIALS or mine[step] >= statistics.median(rivals)


@runtime_checkable
class Source(Protocol):
    """Where a sweep takes its trials."""

    expected: int  # trials in all, for what is left to do

    def ask(self) -> Trial | None:
        """The next trial; None after the last."""

    def tell(self, trial: Trial, record: Mapping[str, Any]) -> None:
        """Takes how a trial ended."""


class Fixed:
    """A list of trials."""

    def __init__(self, trials: Sequence[Trial]):
        self._waiting = collections.deque(trials)
        self.expected = len(trials)

    def ask(self) -> Trial | None:
        """See `Source`."""
        return self._waiting.popleft() if self._waiting else None

    def tell(self, trial: Trial, record: Mapping[str, Any]) -> None:
        """See `Source`."""


def fixed_trials(candidate: Candidate, search: str, trials: int | None, search_seed: int, seed: int) -> list[Trial]:
    """The trials of a grid or random search."""
    if search == "grid":
        points = grid(candidate.space)
    else:
        points = draws(candidate.space, trials or 0, f"{search_seed} {candidate.name}")
    return [Trial(candidate.name, {**candidate.changes, **point, "seed": seed}) for point in points]


class TPE:
    """Trials that Optuna's TPE proposes for one candidate; its journal makes them go on where they were."""

    def __init__(self, candidate: Candidate, trials: int, search_seed: int, seed: int, journal: pathlib.Path):
        import optuna

        self._optuna, self._candidate, self._seed = optuna, candidate, seed
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        journal.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Optuna calls experimental
            storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
            self._study = optuna.create_study(
                study_name=candidate.name, storage=storage, direction="maximize", load_if_exists=True,
                sampler=optuna.samplers.TPESampler(
                    seed=search_seed, n_startup_trials=max(2, trials // 3), multivariate=True
                ),
            )  # fmt: skip
        if not self._study.get_trials():
            self._study.enqueue_trial({key: self._middle(axis) for key, axis in candidate.space.items()})
        # A trial that was running when the sweep was killed runs again, in the same folder: it resumes.
        for trial in self._study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            self._study.enqueue_trial(trial.params)
        self._open: dict[str, Any] = {}
        states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        self._left = trials - len(self._study.get_trials(states=states))
        self.expected = trials

    def ask(self) -> Trial | None:
        """See `Source`."""
        if self._left <= 0:
            return None
        self._left -= 1
        asked = self._study.ask()
        point = {key: self._suggest(asked, key, axis) for key, axis in self._candidate.space.items()}
        trial = Trial(self._candidate.name, {**self._candidate.changes, **point, "seed": self._seed})
        self._open[trial.name] = asked
        return trial

    def _middle(self, axis):
        """Where the search begins: people put what they expect into the middle of a range or a list."""
        if isinstance(axis, Range):
            return axis.middle
        place = (len(axis) - 1) // 2
        return axis[place] if _is_plain(axis) else place

    def _suggest(self, asked, key, axis):
        if not isinstance(axis, Range):
            if _is_plain(axis):
                return asked.suggest_categorical(key, axis)
            return axis[asked.suggest_categorical(key, range(len(axis)))]
        if isinstance(axis.low, int) and isinstance(axis.high, int):
            return asked.suggest_int(key, axis.low, axis.high, log=axis.log)
        return asked.suggest_float(key, axis.low, axis.high, log=axis.log)

    def tell(self, trial: Trial, record: Mapping[str, Any]) -> None:
        """See `Source`."""
        asked = self._open.pop(trial.name, None)
        if asked is None:
            return
        states = self._optuna.trial.TrialState
        if record["status"] == COMPLETE:
            self._study.tell(asked, record["score"])
        elif record["status"] == FAILED:
            self._study.tell(asked, state=states.FAIL)
        else:
            asked.report(record["score"], record["best_step"])
            self._study.tell(asked, state=states.PRUNED)


def _is_plain(axis):
    """Whether Optuna's journal can hold the values themselves."""
    return all(isinstance(value, str | int | float | bool | None) for value in axis)


def check_search(search: str, trials: int | None, candidates: Sequence[Candidate]) -> None:
    """Raises SweepError for a search without trials, a grid with ranges, and TPE without Optuna."""
    if search == "grid":
        for candidate in candidates:
            list(grid(candidate.space))
        if trials is not None:
            raise SweepError(f"trials {trials} is of random and tpe: a grid tries everything; leave it None")
        return
    if trials is None or trials < 1:
        raise SweepError(f"search {search!r} needs trials, the number of each candidate: {trials} is none")
    if search == "tpe" and importlib.util.find_spec("optuna") is None:
        raise SweepError("search 'tpe' needs Optuna: pip install 'glm_jax[sweep]', or choose random")
