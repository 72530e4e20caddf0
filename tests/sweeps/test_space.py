"""What a sweep tries: spaces, candidates, the configs of trials, and what is refused."""

import itertools

import pytest

from glm_jax import config as defaults
from glm_jax.sweeps import space
from glm_jax.sweeps.run import check
from glm_jax.sweeps.space import Range, SweepError, Trial, candidates_of, draws, grid, trial_config

TASK = {"name": "topics", "path": "topics/{split}.jsonl", "pattern": "{text} It is [MASK].", "verbalizer": {0: " a"}}


def config(*candidates, **keys):
    sweep = defaults.sweep()
    sweep.base.tasks = (TASK,)
    sweep.base.test_split = "test"
    if candidates:
        sweep.candidates = candidates
    for key, value in keys.items():
        sweep[key] = value
    return sweep


def test_a_grid_has_all_combinations():
    points = list(grid({"a": (1, 2), "b": ("x", "y", "z")}))
    assert [tuple(point.values()) for point in points] == list(itertools.product((1, 2), "xyz"))
    assert list(grid({})) == [{}]


def test_draws_are_different_reproducible_and_inside():
    axes = {"lr": Range(1e-4, 1e-2, log=True), "n": Range(1, 64, log=True), "m": Range(0, 3), "kind": ("a", "b")}
    points = list(draws(axes, 200, "0 full"))
    assert points == list(draws(axes, 200, "0 full")) != list(draws(axes, 200, "1 full"))
    assert all(1e-4 <= p["lr"] <= 1e-2 and 1 <= p["n"] <= 64 and p["m"] in range(4) for p in points)
    assert all(isinstance(p["n"], int) for p in points)
    below = sum(p["lr"] < 1e-3 for p in points)  # half of a logarithmic scale
    assert 70 < below < 130
    assert {p["kind"] for p in points} == {"a", "b"}
    assert len(list(draws({"kind": ("a", "b")}, 10, "0"))) == 2  # there are no more


def test_a_candidate_has_the_common_space_and_its_own():
    sweep = config(
        {"name": "full"},
        {"name": "lora", "method": "lora", "space": {"schedule.peak_lr": (1e-2,), "lora.rank": (2, 4)}},
        {"name": "fixed", "schedule.peak_lr": 1e-3},
        {"name": "tf", "baseline": "tf_idf"},
        space={"schedule.peak_lr": (1e-4, 1e-3)},
    )
    full, lora, fixed, tf = candidates_of(sweep)
    assert full.space == {"schedule.peak_lr": (1e-4, 1e-3)}
    assert lora.space == {"schedule.peak_lr": (1e-2,), "lora.rank": (2, 4)}
    assert lora.changes == {"method": "lora"}
    assert fixed.space == {}
    assert tf.baseline == "tf_idf"


def test_the_config_of_a_trial_cannot_reach_the_test():
    trial = trial_config(config(), {"lora.rank": 3, "method": "lora", "seed": 5, "optimizer.max_grad_norm": 2})
    assert (trial.lora.rank, trial.method, trial.seed, trial.optimizer.max_grad_norm) == (3, "lora", 5, 2.0)
    assert trial.test_split is None
    assert trial.is_locked


def test_a_prompt_replaces_that_of_the_task():
    sweep = config(prompts={"was": {"pattern": "{text} was [MASK]."}, "other": "boolq:3", "file": {"prompt": "agnews"}})
    assert trial_config(sweep, {"prompt": "other"}).tasks == ("boolq:3",)
    (task,) = trial_config(sweep, {"prompt": "file"}).tasks
    assert task == {"name": "topics", "path": "topics/{split}.jsonl", "prompt": "agnews"}
    sweep.base.tasks = ("configs/tasks/ag_news.py",)
    (task,) = trial_config(sweep, {"prompt": "was"}).tasks
    assert (task["task"], task["pattern"]) == ("configs/tasks/ag_news.py", "{text} was [MASK].")


def test_the_name_of_a_trial_depends_on_candidate_and_changes_alone():
    first = Trial("full", {"a": 1, "b": (1, 2)})
    assert first.name == Trial("full", {"b": [1, 2], "a": 1}).name
    assert len({first.name, Trial("lora", first.changes).name, Trial("full", {"a": 2, "b": (1, 2)}).name}) == 3


def test_changes_are_described_by_the_last_parts_of_their_keys():
    assert space.describe_changes({"schedule.peak_lr": 0.001, "seed": 1}) == "peak_lr 0.001"
    assert space.describe_changes({"seed": 1}) == "as the base"


@pytest.mark.parametrize(
    ("candidates", "keys", "message"),
    [
        ((), {"candidates": ()}, "candidates is empty"),
        (({"method": "lora"},), {}, "must be a dict with a name"),
        (({"name": "a"}, {"name": "a"}), {}, "two candidates are named 'a'"),
        (({"name": "a", "space": {"batch_size": ()}},), {}, "a, batch_size: .* give at least one"),
        (({"name": "a", "space": {"batch_size": 3}},), {}, "3 is no tuple"),
        (({"name": "a", "space": {"batch_size": {"low": 1}}},), {}, "a range needs low and high"),
        (({"name": "a", "space": {"batch_size": {"low": 1, "high": 3, "lg": True}}},), {}, "not 'lg'"),
        (({"name": "a", "space": {"batch_size": {"low": 3, "high": 3}}},), {}, "the range 3 to 3 is empty"),
        (({"name": "a", "space": {"batch_size": {"low": 0, "high": 3, "log": True}}},), {}, "has no logarithm"),
        (({"name": "a", "space": {"batch_size": {"low": 1, "high": 3}}},), {}, "of which a grid has no values"),
        (({"name": "a", "baseline": "tfidf"},), {}, "no baseline 'tfidf'; nearest: tf_idf"),
        (({"name": "a", "baseline": "copy", "batch_size": 1},), {}, "has no hyperparameters"),
        (({"name": "a"},), {"ensembles": {"e": ("b",)}}, "ensemble e: no candidate 'b'; nearest: a"),
        (({"name": "a"},), {"ensembles": {"a": ("a",)}}, "are named 'a'"),
        (({"name": "a"}, {"name": "b", "baseline": "copy"}), {"ensembles": {"e": ("a", "b")}}, "b is a baseline"),
        (({"name": "a", "validation_split": "test"},), {}, "a: validation_split is the same for all"),
        (({"name": "a", "space": {"train_split": ("test",)}},), {}, "a: train_split is the same for all"),
        (({"name": "a", "test_split": "x"},), {}, "a: test_split is the same for all"),
        (({"name": "a", "lora.rnk": 3},), {}, "candidate a: unknown config key 'lora.rnk'; nearest: lora.rank"),
        (({"name": "a", "lora": 3},), {}, "candidate a: lora is a section"),
        (({"name": "a", "batch_size": "x"},), {}, "candidate a: batch_size: 'x' is no int"),
        (({"name": "a", "prompt": "p"},), {"prompts": {"q": "boolq"}}, "no prompt is named 'p'; nearest: q"),
        ((), {"search": "gird"}, "unknown search 'gird'; nearest: grid"),
        ((), {"search": "random"}, "search 'random' needs trials"),
        ((), {"search": "random", "trials": 0}, "search 'random' needs trials"),
        ((), {"trials": 4}, "a grid tries everything"),
        ((), {"seeds": ()}, "at least one"),
        ((), {"seeds": (1, 1)}, "must be different"),
        ((), {"workers": 0}, "workers 0 must be at least 1"),
    ],
)
def test_what_cannot_be_tried_is_refused(candidates, keys, message):
    with pytest.raises(SweepError, match=message):
        check(config(*candidates, **keys))


def test_every_trial_belongs_to_one_machine():
    names = [Trial("full", {"seed": seed}).name for seed in range(100)]
    owners = [[space.Shard(i, 3).owns(name) for i in range(3)] for name in names]
    assert all(sum(row) == 1 for row in owners)
    assert all(20 < count < 50 for count in map(sum, zip(*owners, strict=True)))
    assert all(space.WHOLE.owns(name) for name in names)
    with pytest.raises(SweepError, match="shard 3/3: write I/N"):
        space.Shard(3, 3)


def test_a_training_split_that_is_the_test_is_refused():
    sweep = config()
    sweep.base.train_split = "test"
    with pytest.raises(SweepError, match="what was learned is no test"):
        check(sweep)


@pytest.mark.parametrize("split", [None, "validation"])
def test_a_test_that_was_chosen_on_is_refused(split):
    sweep = config()
    with sweep.ignore_type():
        sweep.base.test_split = split
    with pytest.raises(SweepError, match="a score that was chosen is no test"):
        check(sweep)
