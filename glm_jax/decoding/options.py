"""How tokens are chosen: the options, in the two parts that a compiled program needs, and what they do to logits."""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from glm_jax.decoding import logits as rules


class DecodingError(ValueError):
    """Options that contradict each other or that the model cannot serve."""


def check_count(name: str, value: Any, least: int) -> None:
    """Raises DecodingError for anything but a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise DecodingError(f"{name} is {value!r}, but must be a whole number of at least {least}")


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How the tokens of an answer are chosen. Raises DecodingError for values that contradict each other.

    temperature: 0 takes the most probable token (greedy, or beam search with `num_beams` > 1); above 0 samples from
      softmax(logits / temperature).
    top_k: sample among the k most probable tokens; 0 for all.
    top_p: sample among the most probable tokens that together reach p; 1 for all.
    num_beams: beams of a beam search; 1 for none.
    length_penalty: λ of a hypothesis's value (sum of log-probabilities) / length^λ; 0 compares sums.
    min_new_tokens: end tokens are banned until an answer has this many.
    no_repeat_ngram: no n-gram occurs twice in the answers to a prompt, or, of beams, in one answer; 0 allows all.
    forbidden: ids that are never chosen.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    num_beams: int = 1
    length_penalty: float = 0.0
    min_new_tokens: int = 0
    no_repeat_ngram: int = 0
    forbidden: tuple[int, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "forbidden", tuple(int(i) for i in self.forbidden))
        for name, least in {"top_k": 0, "min_new_tokens": 0, "no_repeat_ngram": 0, "num_beams": 1}.items():
            check_count(name, getattr(self, name), least)
        for name in ("temperature", "top_p", "length_penalty"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Real) or not np.isfinite(value):
                raise DecodingError(f"{name} is {value!r}, but must be a finite number")
        if self.temperature < 0:
            raise DecodingError(f"temperature is {self.temperature}, but must be at least 0")
        if not 0 < self.top_p <= 1:
            raise DecodingError(f"top_p is {self.top_p}, but must lie in (0, 1]; 1 keeps every token")
        if self.num_beams > 1 and self.temperature:
            raise DecodingError(
                f"num_beams={self.num_beams} searches for the most probable answer and temperature={self.temperature} "
                "samples: use one of them"
            )
        if not self.temperature and (self.top_k > 1 or self.top_p < 1) and self.num_beams == 1:
            raise DecodingError(
                f"top_k={self.top_k}, top_p={self.top_p} restrict sampling, but temperature 0 takes the most probable "
                "token anyway: set temperature, such as 0.9"
            )
        if self.length_penalty and self.num_beams == 1:
            raise DecodingError(f"length_penalty={self.length_penalty} compares beams: set num_beams above 1")

    def shape(self) -> "SamplingShape":
        """What the compiled program depends on."""
        return SamplingShape(
            sample=self.temperature > 0,
            top_k=self.top_k,
            top_p=self.top_p < 1,
            ngram=self.no_repeat_ngram,
            forbid=bool(self.forbidden),
        )

    def values(self, vocab_size: int) -> "SamplingValues":
        """What may change without compiling again. Raises DecodingError for a forbidden id outside the vocabulary."""
        outside = [i for i in self.forbidden if not 0 <= i < vocab_size]
        if outside:
            raise DecodingError(f"forbidden id {outside[0]} is outside the vocabulary 0..{vocab_size - 1}")
        forbidden = np.zeros(vocab_size, bool)
        forbidden[list(self.forbidden)] = True
        return SamplingValues(
            temperature=jnp.float32(self.temperature or 1.0),
            top_p=jnp.float32(self.top_p),
            length_penalty=jnp.float32(self.length_penalty),
            min_new_tokens=jnp.int32(self.min_new_tokens),
            forbidden=jnp.asarray(forbidden),
        )


@dataclasses.dataclass(frozen=True)
class SamplingShape:
    """The static part of SamplingParams, on which the compiled program depends."""

    sample: bool = False
    top_k: int = 0
    top_p: bool = False
    ngram: int = 0
    forbid: bool = False


@struct.dataclass
class SamplingValues:
    """The traced part of SamplingParams, which may change without compiling again."""

    temperature: Any  # float32
    top_p: Any  # float32
    length_penalty: Any  # float32
    min_new_tokens: Any  # int32
    forbidden: Any  # bool [V]


def mask_logits(
    logits: Float[Array, "B W V"],
    generated: Int[Array, "B W"],
    history: Int[Array, "B W G"],
    length: Int[Array, ""],
    stops: Sequence[int],
    shape: SamplingShape,
    values: SamplingValues,
) -> Float[Array, "B W V"]:
    """Logits with banned tokens at -inf.

    `generated` counts the tokens of the answer so far; no n-gram of the first `length` tokens of `history` may recur.
    """
    if shape.forbid:
        logits = rules.ban(logits, values.forbidden[None, None])
    is_stop = np.zeros(logits.shape[-1], bool)
    is_stop[list(stops)] = True
    logits = rules.ban(logits, (generated < values.min_new_tokens)[..., None] & jnp.asarray(is_stop)[None, None])
    if shape.ngram:
        logits = rules.ban(logits, rules.repeated_ngrams(history, length, shape.ngram, logits.shape[-1]))
    return logits


def warp_logits(logits: Float[Array, "B W V"], shape: SamplingShape, values: SamplingValues) -> Float[Array, "B W V"]:
    """Logits divided by the temperature and cut to the top k and top p tokens, in that order."""
    logits = logits / values.temperature
    if shape.top_k:
        logits = rules.top_k_filter(logits, shape.top_k)
    if shape.top_p:
        logits = rules.top_p_filter(logits, values.top_p)
    return logits
