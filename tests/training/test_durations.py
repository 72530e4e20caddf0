"""Durations with units, and the one rule for periodic actions."""

import pytest

from glm_jax.training.durations import due, to_steps

FACTS = {"batch_size": 8, "tokens_per_example": 512, "examples_per_epoch": 1000, "total_steps": 300}


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("400 steps", 400),
        ("1 step", 1),
        ("0 steps", 0),
        ("1_000 steps", 1000),
        ("1e3 steps", 1000),
        ("1.5e3steps", 1500),
        ("2e9 tokens", 488_282),  # 2e9 / 4096 = 488281.25
        ("4096 tokens", 1),
        ("4097 tokens", 2),
        ("1 example", 1),
        ("80 examples", 10),
        ("3 epochs", 375),
        ("0.1 epochs", 13),
        ("5 %", 15),
        ("5%", 15),
        ("0.1 percent", 1),
        ("100 %", 300),
        ("0 %", 0),
    ],
)
def test_every_unit(duration, steps):
    assert to_steps(duration, **FACTS) == steps


def test_percentages_are_exact():
    """In binary floating point 0.07 * 100 exceeds 7, which rounding up would turn into 8."""
    assert [to_steps(f"{i} %", total_steps=100) for i in range(101)] == list(range(101))


@pytest.mark.parametrize(
    ("duration", "message"),
    [
        (400, "no unit"),
        (0.1, "no unit"),
        (None, "no unit"),
        ("400", "not a duration"),
        ("", "not a duration"),
        ("steps", "not a duration"),
        ("3 epochs 2 steps", "not a plain number|not a duration"),
        ("-5 steps", "negative"),
        ("5 lightyears", "unknown unit 'lightyears'"),
        ("1.5 steps", "whole"),
        ("1,000 steps", "not a plain number"),
        ("nan1 steps", "not a plain number"),
        ("2e999 tokens", "not a plain number"),
        ("101 %", "at most 100"),
    ],
)
def test_refuses(duration, message):
    with pytest.raises(ValueError, match=message):
        to_steps(duration, name="warmup", **FACTS)


@pytest.mark.parametrize(
    ("duration", "missing"),
    [
        ("3 epochs", "examples_per_epoch"),
        ("3 tokens", "tokens_per_example"),
        ("3 examples", "batch_size"),
        ("3 %", "total_steps"),
    ],
)
def test_missing_fact_is_named(duration, missing):
    with pytest.raises(ValueError, match=f"total_length.*{missing}"):
        to_steps(duration, name="total_length", **{k: v for k, v in FACTS.items() if k != missing})


def test_impossible_fact():
    with pytest.raises(ValueError, match="batch_size = 0"):
        to_steps("3 epochs", **(FACTS | {"batch_size": 0}))


@pytest.mark.parametrize(
    ("every", "total", "steps"),
    [(3, 10, [3, 6, 9, 10]), (5, 10, [5, 10]), (100, 10, [10]), (0, 10, []), (1, 3, [1, 2, 3])],
)
def test_due_every_and_last(every, total, steps):
    assert [step for step in range(total + 1) if due(step, every, total)] == steps


def test_due_refuses_negative_period():
    with pytest.raises(ValueError, match="-1"):
        due(1, -1, 10)
