"""Token losses against the original's and against their definition."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.model.batch import Batch
from glm_jax.model.config import GLMConfig
from glm_jax.model.losses import accuracy, cross_entropy, loss
from glm_jax.model.transformer import GLM, init_params
from tests.helpers.paths import GOLDEN


@pytest.fixture(params=["A", "B"])
def golden(request):
    with np.load(GOLDEN / f"forward_{request.param}.npz") as file:
        return {"file": f"forward_{request.param}.npz", **file}


def arguments(golden):
    arrays = golden["logits"], golden["target"].astype(np.int32), golden["loss_mask"].astype(np.float32)
    return tuple(jnp.asarray(a) for a in arrays)


@pytest.mark.parametrize(("smoothing", "key"), [(0.0, "loss"), (0.1, "loss_label_smoothing_0p1")])
def test_loss_of_the_original(golden, smoothing, key, fidelity):
    total, weight = cross_entropy(*arguments(golden), label_smoothing=smoothing)
    assert weight == golden["loss_mask"].sum()
    what = f"loss with label smoothing {smoothing}"
    fidelity.close(golden["file"], what, total / weight, golden[key], 1e-5)


def test_every_token_has_its_own_loss(golden, fidelity):
    logits, targets, _ = arguments(golden)
    losses = jax.vmap(jax.vmap(lambda *a: cross_entropy(*(x[None, None] for x in a))[0]))(
        logits, targets, jnp.ones(targets.shape)
    )
    fidelity.close(golden["file"], "loss of each token", losses, golden["token_losses"], 1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradient_is_probabilities_minus_target(golden, smoothing):
    logits, targets, weights = arguments(golden)
    weights = weights * jnp.linspace(0.5, 2.0, weights.size).reshape(weights.shape)
    actual = jax.grad(lambda x: cross_entropy(x, targets, weights, smoothing)[0])(logits)
    logits, targets, weights = (np.asarray(a) for a in (logits, targets, weights))
    vocab = logits.shape[-1]
    smoothed = (1 - smoothing) * np.eye(vocab)[targets] + smoothing / vocab
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    np.testing.assert_allclose(actual, weights[..., None] * (probabilities - smoothed), atol=1e-6)


def test_tokens_without_weight_do_not_count(golden):
    logits, targets, weights = arguments(golden)
    elsewhere = jnp.where(weights > 0, targets, (targets + 1) % logits.shape[-1])
    assert cross_entropy(logits, targets, weights)[0] == cross_entropy(logits, elsewhere, weights)[0]


def test_bfloat16_logits_are_summed_in_float32(golden):
    logits, targets, weights = arguments(golden)
    rounded = jnp.asarray(logits, jnp.bfloat16)
    total, _ = cross_entropy(rounded, targets, weights)
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, cross_entropy(rounded.astype(jnp.float32), targets, weights)[0])


def test_large_logits_stay_finite():
    logits = jnp.array([[[1e4, -1e4, 0.0]]])
    total, _ = cross_entropy(logits, jnp.array([[1]]), jnp.ones((1, 1)))
    np.testing.assert_allclose(total, 2e4)


def test_accuracy_counts_weighted_hits():
    logits = jnp.array([[[0.0, 1.0, 0.5], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]])
    targets, weights = jnp.array([[1, 1, 2, 0]]), jnp.array([[1.0, 1.0, 0.5, 0.0]])
    assert accuracy(logits, targets, weights) == (1.5, 2.5)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_label_smoothing_outside_its_range(smoothing):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        cross_entropy(jnp.zeros((1, 1, 2)), jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1)), smoothing)


@pytest.mark.thorough
def test_the_loss_to_train_on_is_the_mean_over_weighted_targets():
    model = GLM(GLMConfig(32, 2, 16, 2, 24, dtype="float32", hidden_dropout=0.3))
    params = nn.unbox(init_params(model, jax.random.key(0)))
    rng, ids = np.random.default_rng(0), np.tile(np.arange(8, dtype=np.int32), (2, 1))
    batch = Batch(
        tokens=ids + 1, position_ids=ids, block_position_ids=0 * ids, prefix_lengths=np.array([5, 4], np.int32),
        target_index=rng.integers(0, 8, (2, 3)).astype(np.int32),
        target_ids=rng.integers(0, 32, (2, 3)).astype(np.int32), target_weights=np.float32([[1, 0.5, 1], [2, 0, 0]]),
        target_source=0 * ids[:, :3], objective=0 * ids[:, 0],
    )  # fmt: skip
    batch = jax.tree.map(jnp.asarray, batch)

    def by_logits(params):
        logits = model.apply({"params": params}, **batch.model_inputs())
        total, weight = cross_entropy(logits, batch.target_ids, batch.target_weights, 0.1)
        return total / weight

    expected, gradients = jax.value_and_grad(by_logits)(params)
    result, fused = jax.value_and_grad(lambda p: loss(model, p, batch, label_smoothing=0.1))(params)
    assert (result.shape, result.dtype) == ((), jnp.float32)
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), fused, gradients)
    assert abs(loss(model, params, batch, dropout_key=jax.random.key(1)) - loss(model, params, batch)) > 1e-3
    assert loss(model, params, batch.replace(target_weights=jnp.zeros((2, 3)))) == 0
