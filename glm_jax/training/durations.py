"""How long and how often: durations written with their unit, turned into optimizer steps."""

import re
from fractions import Fraction
from typing import Any

UNITS = {
    "step": "steps",
    "steps": "steps",
    "token": "tokens",
    "tokens": "tokens",
    "example": "examples",
    "examples": "examples",
    "epoch": "epochs",
    "epochs": "epochs",
    "percent": "%",
    "%": "%",
}
_PATTERN = re.compile(r"\s*(\S*?\d\S*?)\s*([A-Za-z]+|%)\s*")
_NUMBER = re.compile(r"\d+(_\d+)*(\.\d+)?([eE][+-]?\d{1,2})?")
_RULE = "write a number and one unit: '400 steps', '2e9 tokens', '1e6 examples', '3 epochs' or '5 %'"


def to_steps(
    duration: Any,
    *,
    name: str = "duration",
    batch_size: int | None = None,
    tokens_per_example: int | None = None,
    examples_per_epoch: int | None = None,
    total_steps: int | None = None,
) -> int:
    """Returns `duration` as a whole number of optimizer steps.

    Arithmetic is exact (fractions), and rounds up: at least the amount asked for happens, so a positive duration is at
    least one step.

    Args:
      duration: a string with number and unit, such as "400 steps", "2e9 tokens", "1_000 examples", "0.5 epochs", "5 %".
      name: what the duration is for; used in error messages.
      batch_size: examples per optimizer step over all hosts (and accumulation steps); for tokens, examples and epochs.
      tokens_per_example: raw text tokens of one example (L); for tokens.
      examples_per_epoch: size of the dataset; for epochs.
      total_steps: length of the whole run; for percentages.

    Raises:
      ValueError: no unit, unknown unit, negative, not finite, a fraction of a step, more than 100 %, or a unit whose
        facts are missing.
    """
    number, unit = _parse(duration, name)
    if unit == "steps":
        if number.denominator != 1:
            raise ValueError(f"{name} = {duration!r}: steps are whole; round it, or use another unit")
        return int(number)
    if unit == "%":
        if number > 100:
            raise ValueError(f"{name} = {duration!r}: a percentage is a part of the run, at most 100 %; use 'steps'")
        return _ceil(number / 100 * _known(total_steps, "total_steps", name, duration))
    batch = _known(batch_size, "batch_size", name, duration)
    if unit == "tokens":
        return _ceil(number / (batch * _known(tokens_per_example, "tokens_per_example", name, duration)))
    if unit == "epochs":
        number *= _known(examples_per_epoch, "examples_per_epoch", name, duration)
    return _ceil(number / batch)


def due(step: int, every: int, total: int) -> bool:
    """Decides "every N steps, and after the last one", for logging, evaluation and checkpoints alike.

    Args:
      step: optimizer steps completed, so 1 after the first.
      every: the period in steps; 0 turns the action off, also at the end. A period beyond `total` leaves the last step.
      total: optimizer steps of the whole run.

    Raises:
      ValueError: `every` is negative.
    """
    if every < 0:
        raise ValueError(f"period of {every} steps: must be positive, or 0 for never")
    if every == 0 or step <= 0:
        return False
    return step % every == 0 or step == total


def _parse(duration: Any, name: str) -> tuple[Fraction, str]:
    if not isinstance(duration, str):
        raise ValueError(f"{name} = {duration!r} has no unit; {_RULE}")
    match = _PATTERN.fullmatch(duration)
    if match is None:
        raise ValueError(f"{name} = {duration!r} is not a duration; {_RULE}")
    number, unit = match.groups()
    if unit.lower() not in UNITS:
        raise ValueError(f"{name} = {duration!r}: unknown unit {unit!r}; {_RULE}")
    if number.startswith("-"):
        raise ValueError(f"{name} = {duration!r} is negative; {_RULE}")
    if not _NUMBER.fullmatch(number):
        raise ValueError(f"{name} = {duration!r}: {number!r} is not a plain number such as 400, 1_000, 0.5 or 2e9")
    return Fraction(number.replace("_", "")), UNITS[unit.lower()]


def _known(value: int | None, fact: str, name: str, duration: str) -> int:
    if value is None:
        raise ValueError(f"{name} = {duration!r} needs {fact}, which is unknown here; give it, or use 'steps'")
    if isinstance(value, bool) or int(value) != value or value < (0 if fact == "total_steps" else 1):
        raise ValueError(f"{name} = {duration!r}: {fact} = {value!r} must be a positive whole number")
    return int(value)


def _ceil(value: Fraction) -> int:
    return -(-value.numerator // value.denominator)
