"""Which trials run, again or not, without running them."""

import json

from glm_jax.sweeps.folder import COMPLETE, FAILED, SweepFolder
from glm_jax.sweeps.jobs import Training
from glm_jax.sweeps.run import _select
from glm_jax.sweeps.search import Fixed, fixed_trials
from glm_jax.sweeps.space import Candidate, Trial
from tests.sweeps.test_space import config

TRIALS = [Trial("full", {"seed": seed}) for seed in range(3)]


def training(folder, trials=TRIALS):
    return Training(config(), folder, [Fixed(trials)], 1)


def end(jobs, job, score=1.0, **result):
    line = {"step": 3, "validation_score": score}
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    jobs.end(job, {"wall_seconds": 1.0, "compiled": 0, **result})


def test_one_whose_process_died_is_tried_once_more_at_the_end(tmp_path):
    folder = SweepFolder(tmp_path)
    jobs = training(folder)
    first = jobs.next()
    end(jobs, first, error="killed", died=True)
    others = [jobs.next(), jobs.next()]
    for job in others:
        end(jobs, job)
    again = jobs.next()
    assert again.folder == first.folder
    end(jobs, again, error="killed", died=True)
    assert jobs.next() is None
    assert [folder.record(trial)["status"] for trial in TRIALS] == [FAILED, COMPLETE, COMPLETE]


def test_what_has_ended_does_not_run_again_but_what_failed_does(tmp_path):
    folder = SweepFolder(tmp_path)
    jobs = training(folder)
    end(jobs, jobs.next(), error="no")
    end(jobs, jobs.next())
    end(jobs, jobs.next())
    again = training(folder)
    assert again.next().folder == folder.trial(TRIALS[0])
    assert again.next() is None


def test_of_equal_trials_the_first_in_the_space_is_chosen(tmp_path):
    folder = SweepFolder(tmp_path)
    candidate = Candidate("full", {}, {"schedule.peak_lr": (3e-3, 1e-3, 1e-4)})
    trials = fixed_trials(candidate, "grid", None, 0, 0)
    for trial, score in zip(reversed(trials), (1.0, 2.0, 2.0), strict=True):
        folder.finish(trial, {"status": COMPLETE, "score": score})
    chosen = _select(config(), folder, [candidate])
    assert chosen["full"]["changes"]["schedule.peak_lr"] == 3e-3
