"""Scores of candidates against the original's, and one pass against one pass a candidate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.evaluation.cloze import candidate_logprobs, candidate_scores, cloze_loss, forward
from glm_jax.model.attention import attention
from glm_jax.model.config import GLMConfig
from glm_jax.model.losses import token_losses
from glm_jax.model.transformer import GLM
from glm_jax.model.visibility import visible
from glm_jax.tasks.batch import collate
from glm_jax.tasks.encoding import encode_candidates, encode_example
from glm_jax.tasks.errors import TaskError
from tests.helpers.golden_params import from_state_dict
from tests.helpers.golden_tasks import FOLDER

START = 5
PENALTIES = (0.0, 0.7, 1.0)


def arrays(name):
    with np.load(FOLDER / name) as file:
        return dict(file)


@pytest.fixture(scope="module")
def model():
    config = GLMConfig(128, 3, 64, 4, 64, dtype="float32")
    return GLM(config), from_state_dict(arrays("ckpt_A.npz"), config.num_heads)


def encode(context, blank, candidates, **options):
    return encode_candidates(START, context, blank, candidates, **options)


def of_rows(ids, positions, sep, target, mask):
    """The example that the original wrote as one row a candidate."""
    (context,) = {tuple(ids[row, : sep[row]].tolist()) for row in range(len(ids))}
    (blank,) = {int(positions[row, 0, sep[row]]) for row in range(len(ids))}
    return encode(context, blank, [target[row][mask[row] > 0].tolist() for row in range(len(ids))])


def multi_token():
    z = arrays("cloze_multi_token.npz")
    keys = ("input_ids", "position_ids", "sep", "target", "logit_mask")
    return [of_rows(*(z[key][i] for key in keys)) for i in range(len(z["sep"]))], z


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("normalize", [True, False])
def test_multi_token_golden(model, penalty, normalize, fidelity):
    examples, z = multi_token()
    assert all(len(rows) == 1 for rows in examples)
    found = candidate_logprobs(*model, examples, pad=0, batch_size=2, length_penalty=penalty, normalize=normalize)
    expected = z[f"scores_lp{penalty}_softmax{int(normalize)}"]
    found = np.array([s.values for s in found])
    fidelity.close("cloze_multi_token.npz", "sums of log-probabilities", found, expected, 1e-5, relative=True)
    if normalize:
        fast = z[f"fast_scores_lp{penalty}"]
        fidelity.close("cloze_multi_token.npz", "the same by fast_decode", found, fast, 1e-5, relative=True)


def test_single_token_golden(model, fidelity):
    z = arrays("cloze_single_token.npz")
    examples = []
    for ids, positions, sep, words in zip(
        z["input_ids"], z["position_ids"], z["sep"], z["verbalizer_ids"], strict=True
    ):
        context, blank = ids[:sep].tolist(), int(positions[0, sep])
        examples.append(encode(context, blank, [[int(w)] for w in words], single_token=True))
    found = candidate_logprobs(*model, examples, pad=0, normalize=False)
    found = np.array([s.values for s in found])
    fidelity.close("cloze_single_token.npz", "logits of the verbalizers", found, z["logits"], 1e-5)
    found = candidate_logprobs(*model, examples, pad=0, batch_size=3)
    found = np.array([s.values for s in found])
    fidelity.close("cloze_single_token.npz", "their log-probabilities", found, z["log_softmax_logits"], 1e-5)


def made_up(count=3, candidates=7, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        context = rng.integers(10, 128, rng.integers(8, 30)).tolist()
        column = int(rng.integers(1, len(context)))
        context[column] = 2
        answers = [tuple(rng.integers(10, 128, rng.integers(1, 6)).tolist()) for _ in range(candidates)]
        yield context, column, answers


def on_device(rows):
    return jax.tree.map(jnp.asarray, rows)


@functools.partial(jax.jit, static_argnums=0)
def losses(model, params, batch):
    logits = model.apply({"params": params}, **batch.model_inputs())
    return (token_losses(logits, batch.target_ids) * batch.target_weights).sum(1)


def alone(model, context, blank, candidates):
    """A plain row a candidate: no segments, no other candidate."""
    rows = [encode_example(START, context, [blank], [ids]) for ids in candidates]
    return -losses(*model, collate(rows, pad=0, length=64, num_targets=8))


def test_one_pass_is_one_pass_a_candidate(model):
    for example in made_up():
        rows = encode(*example)
        assert len(rows) == 1
        found = candidate_logprobs(*model, [rows], pad=0)[0]
        np.testing.assert_allclose(found.values, alone(model, *example), atol=1e-5, rtol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize(("batch_size", "row_length"), [(1, None), (2, 40), (5, 48)])
def test_batch_padding_and_chunks_change_nothing(model, batch_size, row_length):
    examples = [encode(*example) for example in made_up(5)]
    divided = [encode(*example, row_length=row_length) for example in made_up(5)]
    whole = candidate_logprobs(*model, examples, pad=0, batch_size=8)
    other = candidate_logprobs(*model, divided, pad=77, batch_size=batch_size)
    for a, b in zip(whole, other, strict=True):
        np.testing.assert_allclose(a.values, b.values, atol=1e-5, rtol=1e-6)
        np.testing.assert_array_equal(a.greedy, b.greedy)
    if row_length:
        assert any(len(rows) > 1 for rows in divided)
        assert all(len(row) <= row_length for rows in divided for row in rows)


def test_too_long_for_a_row():
    with pytest.raises(TaskError, match="but rows have 9: raise row_length"):
        encode(*next(made_up()), row_length=9)


def test_a_context_for_each_candidate(model):
    first, second = (next(made_up(1, 1, seed)) for seed in (1, 2))
    both = [*encode(*first, numbers=[0]), *encode(*second, numbers=[1])]
    found = candidate_logprobs(*model, [both], pad=0)[0].values
    np.testing.assert_allclose(found, [alone(model, *c)[0] for c in (first, second)], atol=1e-5, rtol=1e-6)


def test_greedy_says_whether_decoding_writes_it(model):
    context, blank, _ = next(made_up(1, 1))
    written = []
    for _ in range(3):
        probe = encode(context, blank, [[*written, 0]])
        rows = on_device(collate(probe, pad=0, length=64, num_targets=8, segments=True))
        logits = jax.jit(forward, static_argnums=0)(*model, rows)
        written.append(int(logits[0, len(written)].argmax()))
    wrong = (*written[:2], (written[2] + 1) % 128)
    found = candidate_logprobs(*model, [encode(context, blank, [written, wrong])], pad=0)[0]
    assert found.greedy.tolist() == [True, False]


def test_the_rule_with_several_answers():
    """Written out: Part A is 0 1 2, answers are 3 4 and 5 6."""
    answers = np.array([0, 0, 0, 1, 1, 2, 2])
    i, k = np.arange(7)[:, None], np.arange(7)[None]
    seen = visible(np.int32(3), i, k, answers[:, None], answers[None])
    expected = [[1, 1, 1, 0, 0, 0, 0]] * 3 + [
        [1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 1],
    ]  # fmt: skip
    np.testing.assert_array_equal(seen, np.array(expected, bool))


def test_one_answer_is_the_plain_rule():
    rng = np.random.default_rng(0)
    q, k, v = jnp.asarray(rng.normal(size=(3, 2, 8, 2, 4)), jnp.float32)
    prefixes = jnp.array([3, 5], jnp.int32)
    answers = (jnp.arange(8)[None] >= prefixes[:, None]).astype(jnp.int32)
    plain = attention(q, k, v, prefixes)
    np.testing.assert_array_equal(attention(q, k, v, prefixes, segment_ids=answers), plain)
    columns = jnp.array([[7, 3], [6, 2]], jnp.int32)
    few = attention(q[:, :2], k, v, prefixes, query_index=columns, segment_ids=answers)
    np.testing.assert_array_equal(few, attention(q[:, :2], k, v, prefixes, query_index=columns))


def test_candidates_do_not_see_each_other(model):
    """Through gradients: the score of a candidate depends on its own embedding row and on no other candidate's."""
    rows = on_device(collate(encode((1, 20, 2, 21, 0), 2, [(30, 31, 6), (40, 41, 6)]), pad=0, segments=True))

    def first(params):
        return candidate_scores(forward(model[0], params, rows), rows, normalize=False)[0][0, 0]

    gradient = jax.jit(jax.grad(first))(model[1])["word_embeddings"]["embedding"]
    touched = set(np.flatnonzero(np.abs(gradient).sum(1) > 0).tolist())
    assert {30, 31, 6, 1, 20, 21} <= touched
    assert not touched & {40, 41}


def test_losses_of_the_original(fidelity):
    z = arrays("finetune_losses.npz")
    ones = np.ones_like(z["logits"])
    labels = z["labels"].astype(np.int32)
    for kind in ("cross_entropy", "hinge", "generative", "mix", "adapet"):
        loss = cloze_loss(jnp.asarray(z["logits"]), labels, ones, kind)
        fidelity.close("finetune_losses.npz", f"loss {kind}", loss, z[kind], 1e-6)
    masked = cloze_loss(
        jnp.asarray(z["logits"]), z["labels_masked"].astype(np.int32), z["loss_mask"].astype(np.float32)
    )
    fidelity.close("finetune_losses.npz", "masked cross entropy", masked, z["masked_cross_entropy"], 1e-6)
    with pytest.raises(ValueError, match="unknown loss 'hing'; known: cross_entropy"):
        cloze_loss(jnp.asarray(z["logits"]), labels, ones, "hing")
