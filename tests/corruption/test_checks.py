"""What `corrupt` and `corrupt_numpy` refuse, each in one line that names the argument."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.corruption.config import CorruptionConfig
from glm_jax.corruption.corrupt import corrupt
from glm_jax.corruption.corrupt_numpy import corrupt_numpy
from tests.helpers.corruption_records import SPECIAL
from tests.helpers.typechecker import unchecked

ROWS = {
    "tokens": np.full((2, 32), 20, np.int32),
    "lengths": np.array([32, 0], np.int32),
    "index": np.arange(2, dtype=np.uint32),
    "sentence_ends": np.zeros(30, bool),
    "loss_mask": np.ones((2, 32), np.float32),
}
SENTENCES = CorruptionConfig(sentence=1)
STATIC = [
    ({"tokens": np.zeros((2, 32), np.float32)}, r"tokens must be integers of shape \[B, L\], not float32\[2, 32\]"),
    ({"tokens": np.zeros(32, np.int32)}, r"tokens must be integers of shape \[B, L\], not int32\[32\]"),
    ({"tokens": [[1, 2, 3, 4]]}, "tokens must be integers"),
    ({"tokens": np.zeros((2, 3), np.int32), "loss_mask": None}, "sequence length 3 must be at least 4"),
    ({"lengths": np.full(3, 32)}, r"lengths must be integers of shape \[B\] = \(2,\) as tokens, not int64\[3\]"),
    ({"lengths": np.full((2, 1), 32)}, r"lengths must .* not int64\[2, 1\]"),
    ({"lengths": np.ones(2)}, r"lengths must be integers .* not float64\[2\]"),
    ({"lengths": 32}, "lengths must be integers .* not 32"),
    ({"index": np.zeros(1, np.uint32)}, r"index must be integers of shape \[B\]"),
    ({"index": np.zeros(2)}, "index must be integers"),
    ({"sentence_ends": np.zeros((2, 30), bool)}, r"sentence_ends must be bools of shape \[V\], not bool\[2, 30\]"),
    ({"sentence_ends": np.zeros(30, np.int32)}, "sentence_ends must be bools"),
    ({"sentence_ends": None, "config": SENTENCES}, "need sentence_ends: tokenizer.sentence_ends"),
    ({"loss_mask": np.ones((2, 31), np.float32)}, r"loss_mask must be floats of the shape of tokens, \(2, 32\)"),
    ({"loss_mask": np.ones((2, 32), bool)}, r"loss_mask must be floats .* not bool\[2, 32\]"),
    ({"config": {"sentence": 1.0}}, "config must be a CorruptionConfig, not dict"),
    ({"special": 7}, r"special must be SpecialTokens \(tokenizer.special\), not int"),
    ({"config": CorruptionConfig(1, 1, 1, pack_objectives=True)}, "2 examples do not fill rows of 3"),
    ({"config": CorruptionConfig(document=1, max_targets=16)}, "max_targets=16 must be at least 31"),
]
VALUES = [
    ({"lengths": np.array([32, 33])}, "lengths must lie in 0 … 32, not 33: the L of tokens is 32"),
    ({"lengths": np.array([-1, 32])}, "lengths must lie in 0 … 32, not -1"),
    ({"index": np.array([-3, 0])}, "index must lie in 0 … 4294967295, not -3"),
    ({"index": np.array([0, 2**32])}, "index must lie in 0 … 4294967295, not 4294967296"),
    (
        {"sentence_ends": np.zeros(20, bool), "config": SENTENCES},
        "tokens must lie in 0 … 19, not 20: sentence_ends",
    ),
    ({"tokens": np.full((2, 32), -1, np.int32), "config": SENTENCES}, "tokens must lie in 0 … 29, not -1"),
]


def _call(function, key, changes):
    arguments = ROWS | {"config": CorruptionConfig(), "special": SPECIAL} | changes
    with unchecked():  # the checks of the tests' jaxtyping hook would come first
        return function(key, **arguments)


@pytest.mark.parametrize(("function", "key"), [(corrupt, jax.random.key(0)), (corrupt_numpy, 0)], ids=["jax", "numpy"])
@pytest.mark.parametrize(("changes", "message"), STATIC + VALUES)
def test_wrong_arguments_are_named(function, key, changes, message):
    with pytest.raises(ValueError, match=message):
        _call(function, key, changes)


@pytest.mark.parametrize(
    "key", [0, jnp.zeros(2, jnp.int32), jax.random.split(jax.random.key(0), 2), np.zeros((1, 2), np.uint32), None]
)
def test_only_one_random_key_is_accepted(key):
    with pytest.raises(ValueError, match=r"key must be one random key, jax.random.key\(seed\)"):
        _call(corrupt, key, {})


@pytest.mark.parametrize("changes", [{"lengths": np.full(3, 32)}, {"tokens": np.zeros((2, 32), np.float32)}])
def test_shapes_and_dtypes_are_checked_under_jit(changes):
    arrays = {name: value for name, value in (ROWS | changes).items()}
    run = functools.partial(corrupt, config=CorruptionConfig(), special=SPECIAL)
    with unchecked(), pytest.raises(ValueError, match=f"{next(iter(changes))} must be integers"):
        jax.eval_shape(run, jax.random.key(0), **arrays)


@pytest.mark.thorough
def test_every_integer_dtype_and_empty_rows_are_accepted():
    """Rows of length 0 fill up a batch: they have no targets."""
    batch = _call(corrupt, jax.random.PRNGKey(3), {"tokens": ROWS["tokens"].astype(np.uint16)})
    same = _call(corrupt, jax.random.key(3), {"lengths": np.array([32, 0]), "index": np.arange(2)})
    jax.tree.map(np.testing.assert_array_equal, batch, same)
    assert batch.target_ids.dtype == jnp.int32
    assert batch.prefix_lengths[1] == 0
    assert not batch.target_weights[1].any()
