"""The order of trials: the median rule, and TPE's journal."""

import pytest

from glm_jax.sweeps.folder import COMPLETE, FAILED, PRUNED
from glm_jax.sweeps.search import TPE, Median, fixed_trials
from glm_jax.sweeps.space import Candidate, Range, Trial

AXES = {"schedule.peak_lr": Range(1e-4, 1e-1, log=True), "head": ("cloze", "classifier"), "lora.targets": (("a",), ())}
CANDIDATE = Candidate("full", {"method": "full"}, AXES)


def test_the_median_prunes_what_is_worse_at_the_same_step():
    median = Median()
    trials = [Trial("full", {"seed": number}) for number in range(5)]
    for trial, scores in zip(trials, [(10, 50), (20, 60), (30, 70)], strict=False):
        assert all(median.keeps(trial, step, score) for step, score in enumerate(scores))
    assert median.keeps(trials[3], 0, 20)
    assert not median.keeps(trials[3], 1, 25)
    assert median.keeps(trials[4], 0, 65)
    assert median.keeps(trials[4], 1, 5)  # its best so far counts
    assert median.keeps(Trial("lora", {}), 1, 0)  # another candidate's are no rivals


def test_random_trials_have_the_candidates_changes_and_the_seed():
    trials = fixed_trials(CANDIDATE, "random", 4, 0, 7)
    assert len({trial.name for trial in trials}) == 4
    assert all(trial.changes["seed"] == 7 and trial.changes["method"] == "full" for trial in trials)


def test_tpe_goes_on_where_it_was_killed(tmp_path):
    pytest.importorskip("optuna")
    open_search = lambda trials=6: TPE(CANDIDATE, trials, 0, 0, tmp_path / "full.journal")  # noqa: E731
    search = open_search()
    for number, status in enumerate([COMPLETE, PRUNED, FAILED]):
        search.tell(search.ask(), {"status": status, "score": float(number), "best_step": 3})
    running = search.ask()
    again = open_search()  # the first was killed while `running` ran
    assert again.ask().name == running.name
    again.tell(running, {"status": COMPLETE, "score": 1.0, "best_step": 1})
    names = set()
    while (trial := again.ask()) is not None:
        names.add(trial.name)
        again.tell(trial, {"status": COMPLETE, "score": 0.5, "best_step": 1})
    assert len(names) == 3  # one more for the failed one
    assert open_search().ask() is None
    assert running.changes["lora.targets"] in (("a",), ())


def test_tpe_finds_what_is_good(tmp_path):
    """Better than the middle of what was drawn at random before it."""
    pytest.importorskip("optuna")
    candidate = Candidate("full", {}, {"x": Range(-1.0, 1.0), "y": Range(-1.0, 1.0)})
    search, scores = TPE(candidate, 30, 0, 0, tmp_path / "full.journal"), []
    while (trial := search.ask()) is not None:
        scores.append(-((trial.changes["x"] - 0.3) ** 2) - (trial.changes["y"] + 0.2) ** 2)
        search.tell(trial, {"status": COMPLETE, "score": scores[-1], "best_step": 1})
    assert sum(scores[20:]) / 10 > sum(scores[:10]) / 10
    assert max(scores) > -0.02
