"""Checks of what is passed to `corrupt` and `corrupt_numpy`: one line that names the argument."""

import jax
import numpy as np

from glm_jax.corruption.config import CorruptionConfig
from glm_jax.tokenizers.special import SpecialTokens


def check_key(key) -> None:
    """Raises ValueError for anything but one JAX random key."""
    dtype, shape = getattr(key, "dtype", None), np.shape(key)
    is_typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    if not (is_typed and shape == ()) and not (dtype == np.uint32 and len(shape) == 1):
        raise ValueError(f"key must be one random key, jax.random.key(seed), not {_describe(key)}")


def check_rows(tokens, lengths, index, sentence_ends, loss_mask, config, special) -> None:
    """Raises ValueError for an argument of the wrong type, shape or dtype, or of a wrong value where it is known.

    Values are known outside `jax.jit`, if the array is addressable by this process.
    """
    if not isinstance(config, CorruptionConfig):
        raise ValueError(f"config must be a CorruptionConfig, not {type(config).__name__}")
    if not isinstance(special, SpecialTokens):
        raise ValueError(f"special must be SpecialTokens (tokenizer.special), not {type(special).__name__}")
    if np.ndim(tokens) != 2 or not _has_dtype(tokens, np.integer):
        raise ValueError(f"tokens must be integers of shape [B, L], not {_describe(tokens)}")
    batch, row = np.shape(tokens)
    for name, array in (("lengths", lengths), ("index", index)):
        if np.shape(array) != (batch,) or not _has_dtype(array, np.integer):
            raise ValueError(f"{name} must be integers of shape [B] = ({batch},) as tokens, not {_describe(array)}")
    if loss_mask is not None and (np.shape(loss_mask) != (batch, row) or not _has_dtype(loss_mask, np.floating)):
        raise ValueError(f"loss_mask must be floats of the shape of tokens, {batch, row}, not {_describe(loss_mask)}")
    needs_ends = bool(config.sentence or config.short_sequence_prob)
    if sentence_ends is None and needs_ends:
        raise ValueError("the sentence objective and short sequences need sentence_ends: tokenizer.sentence_ends()")
    if sentence_ends is not None and (np.ndim(sentence_ends) != 1 or not _has_dtype(sentence_ends, np.bool_)):
        raise ValueError(f"sentence_ends must be bools of shape [V], not {_describe(sentence_ends)}")
    config.capacity(row)  # raises for a row length that is too small or too large
    if batch % (slots := len(config.slots())):
        raise ValueError(f"{batch} examples do not fill rows of {slots}: take a multiple of {slots}")

    _check_range("lengths", lengths, 0, row, f"the L of tokens is {row}")
    _check_range("index", index, 0, 2**32 - 1, "it is a uint32")
    if needs_ends:
        size = np.shape(sentence_ends)[0]
        _check_range("tokens", tokens, 0, size - 1, f"sentence_ends has {size} entries, one for each id")


def _check_range(name, array, lowest, highest, reason):
    if isinstance(array, jax.core.Tracer) or not getattr(array, "is_fully_addressable", True):
        return
    values = np.asarray(array)
    wrong = (values < lowest) | (values > highest)
    if wrong.any():
        raise ValueError(f"{name} must lie in {lowest} … {highest}, not {values[wrong][0]}: {reason}")


def _has_dtype(array, kind):
    dtype = getattr(array, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, kind)


def _describe(value):
    if hasattr(value, "dtype"):
        return f"{value.dtype}{list(np.shape(value))}"
    return repr(value) if isinstance(value, (int, float, str)) else type(value).__name__
