"""Models with one position a token: what a position sees, and that every way of computing them agrees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.decoding import Decoder, DecodingError, SamplingParams
from glm_jax.decoding.prompts import EncodedPrompt, PromptError, check_room
from glm_jax.distributed.sharding import unbox
from glm_jax.evaluation.cloze import candidate_logprobs
from glm_jax.evaluation.language_model import row_losses, windows
from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import GLM, init_params
from glm_jax.tasks.encoding import encode_candidates, encode_example
from glm_jax.tasks.errors import TaskError
from tests.helpers.decoding_models import SPECIAL, keys, prompts

CONFIG = GLMConfig(
    128, 2, 32, 4, 64, dtype="float32", hidden_dropout=0.0, attention_dropout=0.0, layout="causal", init_std=0.2
)
LAYOUTS = ("prefix", "causal")


def model_of(layout, **changes):
    model = GLM(dataclasses.replace(CONFIG, layout=layout, **changes))
    return model, unbox(jax.jit(lambda key: init_params(model, key))(jax.random.key(0)))


def logits_by_hand(params, tokens, prefix):
    """A GLM without block positions, whose row has the positions 0, 1, …: what the layouts come down to."""
    model = GLM(dataclasses.replace(CONFIG, layout="glm", block_positions=False))
    ids = jnp.asarray(tokens, jnp.int32)[None]
    positions = jnp.arange(len(tokens), dtype=jnp.int32)[None]
    lengths = jnp.array([prefix], jnp.int32)
    return np.asarray(model.apply({"params": params}, ids, positions, jnp.zeros_like(ids), lengths))[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_is_one_sequence(layout):
    model, params = model_of(layout)
    assert "block_position_embeddings" not in params
    assert model.config.num_positions == 64
    row = encode_example(SPECIAL.start, [1, 20, 2, 21, 0], [2], [[30, 31, 6]])
    inputs = [jnp.array([field], jnp.int32) for field in (row.tokens, row.position_ids, row.block_position_ids)]
    logits = model.apply({"params": params}, *inputs, jnp.array([row.prefix_length], jnp.int32))[0]
    expected = logits_by_hand(params, row.tokens, row.prefix_length if layout == "prefix" else 0)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_a_causal_model_sees_nothing_that_comes_later():
    model, params = model_of("causal")
    embeddings = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 32)), jnp.float32)
    ids, positions = jnp.zeros((1, 8), jnp.int32), jnp.arange(8, dtype=jnp.int32)[None]

    def output(x):
        return model.apply(
            {"params": params}, ids, positions, ids, jnp.array([5], jnp.int32), input_embeddings=x, head=False
        )[0, :, 0]

    depends = np.abs(jax.jacobian(output)(embeddings)[:, 0]).sum(-1) > 0
    np.testing.assert_array_equal(depends, np.tril(np.ones((8, 8), bool)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_candidates_in_one_row_score_as_each_alone(layout):
    model, params = model_of(layout)
    candidates = [(30, 6), (31, 32, 6), (33, 34, 35, 6)]
    context, blank = [1, 20, 2, 21, 0], 2
    (together,) = candidate_logprobs(
        model, params, [encode_candidates(SPECIAL.start, context, blank, candidates)], pad=SPECIAL.pad
    )
    prefix = len(context) if layout == "prefix" else 0
    for value, ids in zip(together.values, candidates, strict=True):
        log_probs = jax.nn.log_softmax(logits_by_hand(params, [*context, SPECIAL.start, *ids[:-1]], prefix))
        alone = sum(float(log_probs[len(context) + i, token]) for i, token in enumerate(ids))
        assert value == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_decoding_equals_the_whole_forward(layout, num_beams):
    model, params = model_of(layout)
    given = prompts(3, seed=1)
    answers = Decoder(model, params, SPECIAL).complete(
        given, SamplingParams(num_beams=num_beams), max_new_tokens=5, keys=keys(3)
    )
    for prompt, (answer, *_) in zip(given, answers, strict=True):
        (tokens,), (score,) = answer.tokens, answer.scores
        prefix = len(prompt.part_a) if layout == "prefix" else 0
        row = [*prompt.part_a, SPECIAL.start, *tokens]
        log_probs = np.asarray(jax.nn.log_softmax(logits_by_hand(params, row, prefix)))[len(prompt.part_a) :]
        chosen = [float(log_probs[i, token]) for i, token in enumerate(tokens)]
        if len(tokens) < 5:
            chosen.append(max(float(log_probs[-1, stop]) for stop in (SPECIAL.end, SPECIAL.eos)))
        assert score == pytest.approx(sum(chosen), abs=1e-3)
        if num_beams == 1:
            assert tokens == tuple(log_probs.argmax(-1)[: len(tokens)].tolist())


def test_what_a_layout_cannot_do_is_refused():
    model, params = model_of("causal")
    decoder = Decoder(model, params, SPECIAL)
    with pytest.raises(DecodingError, match="a prompt has 2 blanks, but a model of the layout 'causal' fills one"):
        decoder.complete(prompts(1, blanks=2), SamplingParams(), max_new_tokens=2, keys=keys(1))
    model, params = model_of("masked")
    rows = [encode_candidates(SPECIAL.start, [1, 2, 0], 1, [(30, 6)])]
    with pytest.raises(TaskError, match="which has no Part B to score"):
        candidate_logprobs(model, params, rows, pad=SPECIAL.pad)
    with pytest.raises(TaskError, match="which has no Part B to score"):
        row_losses(model, params, rows[0], pad=SPECIAL.pad)
    with pytest.raises(ValueError, match="unknown layout 'caussal'"):
        GLMConfig(128, 2, 32, 4, 64, layout="caussal")


def test_what_does_not_fit_the_positions_is_refused():
    """In a GLM the answer has positions of its own; here the text and its answer share them."""
    prompt = EncodedPrompt((1, *[20] * 50, 2, 0), (51,))
    config = dataclasses.replace(CONFIG, layout="prefix")
    check_room([prompt], config, 10)
    with pytest.raises(PromptError, match="a prompt of 53 tokens and max_new_tokens=11 are 1 more than the model's 64"):
        check_room([prompt], config, 11)
    check_room([prompt], dataclasses.replace(CONFIG, layout="glm"), 11)
    model, params = model_of("causal")
    rows = [encode_candidates(SPECIAL.start, prompt.part_a, 51, [(30,) * 12])]
    with pytest.raises(ValueError, match="but the table holds positions 0 to 63"):
        candidate_logprobs(model, params, rows, pad=SPECIAL.pad)
    for length in (63, 64):  # a window needs a position more than it has tokens
        rows = list(windows(SPECIAL, range(20, 100), length))
        if length == 63:
            assert all(np.isfinite(loss.loss) for loss in row_losses(model, params, rows, pad=SPECIAL.pad))
        else:
            with pytest.raises(ValueError, match="but the table holds positions 0 to 63"):
                row_losses(model, params, rows, pad=SPECIAL.pad)
    answers = Decoder(model, params, SPECIAL).complete([prompt], SamplingParams(), max_new_tokens=10, keys=keys(1))
    assert np.isfinite(answers[0][0].scores[0])
