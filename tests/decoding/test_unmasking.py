"""Answers of a masked language model, by the whole forward in a loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.decoding import Decoder, DecodingError, SamplingParams
from glm_jax.decoding.prompts import EncodedPrompt
from glm_jax.decoding.unmasking import reveal
from glm_jax.distributed.sharding import unbox
from glm_jax.model.transformer import GLM, init_params
from tests.helpers.decoding_models import CONFIG, SPECIAL, keys, prompts

ANSWER = 6


@pytest.fixture(scope="module")
def model():
    return GLM(dataclasses.replace(CONFIG, layout="masked", init_std=0.2))


@pytest.fixture(scope="module")
def params(model):
    return unbox(jax.jit(lambda key: init_params(model, key))(jax.random.key(0)))


def by_hand(model, params, prompt, per_step, forbidden=()):
    """Answer and score: in each pass the surest `per_step` masks are revealed, and what follows an end is dropped."""
    (blank,) = prompt.blanks
    row = [*prompt.part_a[:blank], *[SPECIAL.mask] * ANSWER, *prompt.part_a[blank + 1 :]]
    ids, scores, end = [None] * ANSWER, [0.0] * ANSWER, ANSWER
    while None in ids[:end]:
        tokens = jnp.array([row], jnp.int32)
        positions = jnp.arange(len(row), dtype=jnp.int32)[None]
        length = jnp.array([len(row)], jnp.int32)
        logits = model.apply({"params": params}, tokens, positions, jnp.zeros_like(tokens), length)
        log_probs = np.array(jax.nn.log_softmax(logits[0]))
        log_probs[:, list(forbidden)] = -np.inf
        hidden = [i for i in range(end) if ids[i] is None]
        for i in sorted(hidden, key=lambda i: -log_probs[blank + i].max())[:per_step]:
            ids[i], scores[i] = int(log_probs[blank + i].argmax()), float(log_probs[blank + i].max())
        end = next((i for i, token in enumerate(ids) if token in STOPS), ANSWER)
        for i in range(ANSWER):
            row[blank + i] = SPECIAL.end if i > end else SPECIAL.mask if ids[i] is None else ids[i]
    return tuple(ids[:end]), sum(scores[: end + 1])


STOPS = (SPECIAL.end, SPECIAL.eos)


def test_the_surest_token_is_revealed_first(model, params):
    given = prompts(6, seed=2)
    sampling_params = SamplingParams(forbidden=(30, 31))
    answers = Decoder(model, params, SPECIAL).complete(
        given, sampling_params, max_new_tokens=ANSWER, keys=keys(6), batch_size=4
    )
    for prompt, (answer,) in zip(given, answers, strict=True):
        tokens, score = by_hand(model, params, prompt, 1, (30, 31))
        assert answer.tokens == (tokens,)
        assert answer.scores[0] == pytest.approx(score, abs=1e-3)


def test_fewer_passes_reveal_more_at_once(model, params):
    (prompt,) = prompts(1, seed=3)
    (blank,) = prompt.blanks
    row = [*prompt.part_a[:blank], *[SPECIAL.mask] * ANSWER, *prompt.part_a[blank + 1 :]]
    ids, scores = reveal(
        params, jnp.array([row], jnp.int32), jnp.array([len(row)]), jnp.arange(blank, blank + ANSWER)[None],
        jnp.zeros(0, jnp.int32), model=model, stops=STOPS, num_steps=2,
    )  # fmt: skip
    tokens, score = by_hand(model, params, prompt, ANSWER // 2)
    assert tuple(ids[0, : len(tokens)].tolist()) == tokens
    assert float(scores.sum()) == pytest.approx(score, abs=1e-3)


def test_a_table_of_positions_of_any_size_is_enough(model):
    """Padding has no position of its own: a row of 35 tokens is padded to 48."""
    model = GLM(dataclasses.replace(model.config, max_position_embeddings=36))
    params = unbox(jax.jit(lambda key: init_params(model, key))(jax.random.key(0)))
    prompt = EncodedPrompt((1, *[20] * 28, 2, 0), (29,))
    (answer,) = Decoder(model, params, SPECIAL).complete([prompt], SamplingParams(), max_new_tokens=5, keys=keys(1))
    assert np.isfinite(answer[0].scores[0])


def test_what_cannot_be_written_is_refused(model, params):
    decoder, given = Decoder(model, params, SPECIAL), prompts(1)
    with pytest.raises(DecodingError, match="fills one"):
        decoder.complete(prompts(1, blanks=2), SamplingParams(), max_new_tokens=2, keys=keys(1))
    with pytest.raises(DecodingError, match="of all options it takes forbidden"):
        decoder.complete(given, SamplingParams(num_beams=2), max_new_tokens=2, keys=keys(1))
    begun = [dataclasses.replace(given[0], answer_prefix=(30,))]
    with pytest.raises(DecodingError, match="does not write from left to right"):
        decoder.complete(begun, SamplingParams(), max_new_tokens=2, keys=keys(1))
    with pytest.raises(DecodingError, match="in no order that could be streamed"):
        next(decoder.stream(given[0], SamplingParams(), max_new_tokens=2, key=jax.random.key(0)))
