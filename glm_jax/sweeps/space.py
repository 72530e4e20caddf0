"""What a sweep tries: candidates, the spaces of their hyperparameters, and the config of each trial."""

import dataclasses
import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from glm_jax.config import find_key
from glm_jax.evaluation.baselines import KINDS as BASELINES
from glm_jax.files import nearest
from glm_jax.sweeps.hub import KEYS as HUB_KEYS
from glm_jax.sweeps.hub import missing_packages

SEARCHES = ("grid", "random", "tpe")
PROMPT = "prompt"  # the key of a space or candidate that names one of the sweep's prompts
# What would let a candidate choose on the test, or be measured on something else than the others.
_OF_THE_BASE = ("train_split", "validation_split", "test_split", "seed", "seeds", "eval_examples")
HUB = "hub"  # the key of a candidate that is a model of the hub: its name there, or a folder


class SweepError(ValueError):
    """A sweep that cannot be run as its config says."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included, on a logarithmic scale with `log`; whole ones if both ends are."""

    low: float
    high: float
    log: bool = False

    @property
    def middle(self) -> float | int:
        """The number in the middle of the scale."""
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return round(middle) if isinstance(self.low, int) and isinstance(self.high, int) else middle

    def draw(self, rng: random.Random) -> float | int:
        """One of them, uniformly on the scale."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            if self.log:
                return round(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
            return rng.randint(self.low, self.high)
        if self.log:
            return math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return rng.uniform(self.low, self.high)


Space = Mapping[str, tuple | Range]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One of the things that a sweep compares.

    Attributes:
      name: in tables.
      changes: dotted keys of the base config -> values.
      space: dotted keys -> the values that are tried.
      baseline: one of evaluation.baselines.KINDS, which learns without a checkpoint and has no hyperparameters.
    """

    name: str
    changes: Mapping[str, Any]
    space: Space
    baseline: str | None = None


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a candidate: the base config with these changes, seed included."""

    candidate: str
    changes: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of its folder: a hash of candidate and changes."""
        text = json.dumps([self.candidate, self.changes], sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class Shard:
    """The share of one of `count` machines that run a sweep together, on a disk that all see: `index` counts from 0.

    Raises SweepError for an index outside of the count.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise SweepError(f"shard {self.index}/{self.count}: write I/N with I from 0 to N - 1")

    def owns(self, name: str) -> bool:
        """Whether this machine runs what has this name."""
        return int(hashlib.sha256(name.encode()).hexdigest(), 16) % self.count == self.index


WHOLE = Shard()


def candidates_of(config: ConfigDict) -> list[Candidate]:
    """The candidates of a sweep. Raises SweepError for names, spaces and values that cannot be used."""
    if not config.candidates:
        raise SweepError("candidates is empty: name what to compare, such as ({'name': 'full'},)")
    found = []
    for settings in config.candidates:
        if not isinstance(settings, Mapping) or not settings.get("name"):
            raise SweepError(f"candidate {settings!r} must be a dict with a name")
        changes = {key: value for key, value in settings.items() if key not in ("name", "space", "baseline")}
        name, baseline = settings["name"], settings.get("baseline")
        if baseline is not None:
            if baseline not in BASELINES:
                raise SweepError(f"candidate {name}: no baseline {baseline!r}; nearest: {nearest(baseline, BASELINES)}")
            if changes or settings.get("space"):
                raise SweepError(f"candidate {name}: the baseline {baseline} has no hyperparameters: leave them out")
            found.append(Candidate(name, {}, {}, baseline))
            continue
        own = {**config.space, **settings.get("space", {})}
        if common := [key for key in (*changes, *own) if key in _OF_THE_BASE]:
            raise SweepError(f"candidate {name}: {common[0]} is the same for all: set base.{common[0]}, or seeds")
        if HUB in changes:
            _check_hub(name, [*changes, *own])
        space = {key: _axis(name, key, values) for key, values in own.items() if key not in changes}
        found.append(Candidate(name, changes, space))
    names = [candidate.name for candidate in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise SweepError(f"two candidates are named {twice[0]!r}")
    baselines = [candidate.name for candidate in found if candidate.baseline is not None]
    for name, members in config.ensembles.items():
        if wrong := [member for member in members if member in baselines]:
            raise SweepError(f"ensemble {name}: {wrong[0]} is a baseline; an ensemble averages trained candidates")
        if missing := [member for member in members if member not in names]:
            raise SweepError(f"ensemble {name}: no candidate {missing[0]!r}; nearest: {nearest(missing[0], names)}")
        if name in names:
            raise SweepError(f"an ensemble and a candidate are named {name!r}")
    return found


def _check_hub(candidate, keys):
    if (package := missing_packages()) is not None:
        raise SweepError(f"candidate {candidate}: a hub model needs {package}: pip install 'glm_jax[baselines]'")
    if unread := [key for key in keys if key != HUB and not key.startswith(HUB_KEYS)]:
        raise SweepError(
            f"candidate {candidate}: a hub model does not read {unread[0]}; it reads {', '.join(HUB_KEYS)}"
        )


def _axis(candidate: str, key: str, values: Any) -> tuple | Range:
    if isinstance(values, Mapping):
        if unknown := set(values) - {"low", "high", "log"}:
            raise SweepError(f"candidate {candidate}, {key}: a range has low, high and log, not {min(unknown)!r}")
        if "low" not in values or "high" not in values:
            raise SweepError(f"candidate {candidate}, {key}: a range needs low and high")
        axis = Range(**values)
        if not axis.low < axis.high or (axis.log and axis.low <= 0):
            raise SweepError(
                f"candidate {candidate}, {key}: the range {axis.low} to {axis.high} is empty, or has no logarithm"
            )
        return axis
    if not isinstance(values, list | tuple) or not values:
        raise SweepError(f"candidate {candidate}, {key}: {values!r} is no tuple of values to try; give at least one")
    return tuple(values)


def grid(space: Space) -> Iterator[dict[str, Any]]:
    """All combinations of a space's values, the last key fastest. Raises SweepError for a range."""
    for key, axis in space.items():
        if isinstance(axis, Range):
            raise SweepError(
                f"{key} is a range, of which a grid has no values: list some, or set search = 'random' or 'tpe'"
            )
    for values in itertools.product(*space.values()):
        yield dict(zip(space, values, strict=True))


def draws(space: Space, count: int, seed: str) -> Iterator[dict[str, Any]]:
    """`count` different points of a space at random; all of a space that has fewer."""
    rng, seen = random.Random(seed), set()
    size = math.prod(math.inf if isinstance(axis, Range) else len(axis) for axis in space.values())
    while len(seen) < min(count, size):
        point = {
            key: axis.draw(rng) if isinstance(axis, Range) else axis[rng.randrange(len(axis))]
            for key, axis in space.items()
        }
        if (text := json.dumps(point, default=list)) not in seen:
            seen.add(text)
            yield point


def trial_config(sweep: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """The config of a trial, whose result is that of the validation split: the test split is out of its reach.

    Raises SweepError for a key that the base does not have, with the nearest ones, and for a value of another type.
    """
    config = sweep.base.copy_and_resolve_references()
    for key, value in changes.items():
        if key == PROMPT:
            config.tasks = (_with_prompt(sweep, value),)
        elif key != HUB:
            _set(config, key, value)
    with config.ignore_type():
        config.seeds, config.test_split = None, None
    return config


def _with_prompt(sweep, name):
    if name not in sweep.prompts:
        raise SweepError(f"no prompt is named {name!r}; nearest: {nearest(name, sweep.prompts) or 'prompts is empty'}")
    prompt = sweep.prompts[name]
    if isinstance(prompt, str):
        return prompt
    if len(sweep.base.tasks) != 1:
        raise SweepError(f"prompts change one task, but the base has {len(sweep.base.tasks)}")
    task = sweep.base.tasks[0]
    if isinstance(task, str):
        return {"task": task, "data_dir": sweep.base.data.data_dir, **prompt}
    old = ("pattern", "verbalizer", "candidates", "prompt", "pattern_id") if {"pattern", "prompt"} & set(prompt) else ()
    return {key: value for key, value in dict(task).items() if key not in old} | dict(prompt)


def _set(config, key, value):
    try:
        section, name = find_key(config, key)
    except LookupError as error:
        raise SweepError(str(error)) from None
    try:
        section[name] = value
    except TypeError:
        raise SweepError(f"{key}: {value!r} is no {section.get_type(name).__name__}") from None


def describe_changes(changes: Mapping[str, Any], without: Sequence[str] = ("seed",)) -> str:
    """peak_lr 0.001, prompt topic: the changes for people, by the last parts of their keys."""
    parts = [f"{key.rpartition('.')[2]} {value_text(value)}" for key, value in changes.items() if key not in without]
    return ", ".join(parts) or "as the base"


def value_text(value: Any) -> str:
    """A hyperparameter's value for people."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
