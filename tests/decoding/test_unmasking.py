"""Answers of a masked language model, by the whole forward in a loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.decoding import DecodingError
from glm_jax.decoding.unmasking import unmask
from glm_jax.distributed.sharding import unbox
from glm_jax.model.transformer import GLM, init_params
from tests.helpers.decoding_models import CONFIG, SPECIAL, prompts

ANSWER = 6


@pytest.fixture(scope="module")
def model():
    return GLM(dataclasses.replace(CONFIG, layout="masked", init_std=0.2))


@pytest.fixture(scope="module")
def params(model):
    return unbox(jax.jit(lambda key: init_params(model, key))(jax.random.key(0)))


def by_hand(model, params, prompt, per_step, forbidden=()):
    """Ids and log-probabilities of all masks: in each pass the surest `per_step` are revealed."""
    (blank,) = prompt.blanks
    row = [*prompt.part_a[:blank], *[SPECIAL.mask] * ANSWER, *prompt.part_a[blank + 1 :]]
    ids, scores = [None] * ANSWER, [0.0] * ANSWER
    while None in ids:
        tokens = jnp.array([row], jnp.int32)
        positions = jnp.arange(len(row), dtype=jnp.int32)[None]
        length = jnp.array([len(row)], jnp.int32)
        logits = model.apply({"params": params}, tokens, positions, jnp.zeros_like(tokens), length)
        log_probs = np.array(jax.nn.log_softmax(logits[0]))
        log_probs[:, list(forbidden)] = -np.inf
        hidden = [i for i in range(ANSWER) if ids[i] is None]
        for i in sorted(hidden, key=lambda i: -log_probs[blank + i].max())[:per_step]:
            ids[i], scores[i] = int(log_probs[blank + i].argmax()), float(log_probs[blank + i].max())
            row[blank + i] = ids[i]
    return ids, scores


@pytest.mark.parametrize("num_steps", [None, 2])
def test_the_surest_token_is_revealed_first(model, params, num_steps):
    given = prompts(5, seed=2)
    answers = unmask(
        model, params, SPECIAL, given, max_new_tokens=ANSWER, num_steps=num_steps, forbidden=(30, 31), batch_size=2
    )
    for prompt, (answer,) in zip(given, answers, strict=True):
        ids, scores = by_hand(model, params, prompt, ANSWER // (num_steps or ANSWER), (30, 31))
        count = next((i for i, token in enumerate(ids) if token in (SPECIAL.end, SPECIAL.eos)), ANSWER)
        assert answer.tokens == (tuple(ids[:count]),)
        assert answer.scores[0] == pytest.approx(sum(scores[: count + 1]), abs=1e-3)


def test_what_cannot_be_written_is_refused(model, params):
    with pytest.raises(DecodingError, match="fills one blank a prompt"):
        unmask(model, params, SPECIAL, prompts(1, blanks=2), max_new_tokens=2)
    with pytest.raises(ValueError, match="but the table holds positions 0 to 63"):
        unmask(model, params, SPECIAL, prompts(1), max_new_tokens=64)
