"""Losses of target tokens. `loss` is what to train on; the others take logits and return weighted sums.

Weighted sums are divided once by the caller, over all that it averages (batches, devices, steps).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from glm_jax.model.batch import Batch
from glm_jax.model.checks import check_label_smoothing
from glm_jax.model.fused_cross_entropy import TargetLosses, fused_linear_cross_entropy
from glm_jax.model.gradients import custom_vjp


def loss(
    model: nn.Module, params: Any, batch: Batch, *, dropout_key: Any = None, label_smoothing: float = 0.0
) -> Float[Array, ""]:
    """The mean cross entropy of the batch's targets in nats, weighted by `target_weights`; float32, to differentiate.

    The head is fused with the cross entropy, so that the logits never exist at once: see `target_losses`. A batch
    without targets has loss 0.

    Args:
      model: a `GLM`.
      params: its parameters.
      batch: from `corrupt`, or one example a row of your own.
      dropout_key: a PRNG key; None: no dropout.
      label_smoothing: see `token_losses`.

    Raises:
      ValueError: arrays whose shapes or dtypes do not belong together.
    """
    result = target_losses(model, params, batch, dropout_key=dropout_key, label_smoothing=label_smoothing)
    count = jnp.sum(batch.target_weights.astype(jnp.float32))
    return result.total / jnp.where(count == 0.0, 1.0, count)


def target_losses(
    model: nn.Module,
    params: Any,
    batch: Batch,
    *,
    dropout_key: Any = None,
    label_smoothing: float = 0.0,
    score: bool = False,
) -> TargetLosses:
    """The loss of every target of the batch, and their sum; `score` also says which targets have the largest logit."""
    hidden = model.apply(
        {"params": params},
        **batch.model_inputs(),
        head=False,
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    )
    return fused_linear_cross_entropy(
        hidden,
        nn.unbox(params["word_embeddings"]["embedding"]),
        batch.target_ids,
        batch.target_weights,
        label_smoothing=label_smoothing,
        score=score,
    )


def token_losses(
    logits: Float[Array, "B K V"], target_ids: Int[Array, "B K"], label_smoothing: float = 0.0
) -> Float[Array, "B K"]:
    """-log p(target) of every token in nats, float32.

    With label smoothing e a token's loss is (1 - e) · -log p(target) + e · mean over the vocabulary of -log p, the
    form in which the original fine-tunes on sequence-to-sequence tasks. Raises ValueError for e outside [0, 1).
    """
    check_label_smoothing(label_smoothing)
    return _token_losses(logits, target_ids, label_smoothing)


@functools.partial(custom_vjp, nondiff_argnums=(2,))
def _token_losses(logits, target_ids, label_smoothing):
    return _forward(logits, target_ids, label_smoothing)[0]


def _forward(logits, target_ids, label_smoothing):
    values = logits.astype(jnp.float32)
    log_normalizer = jax.nn.logsumexp(values, axis=-1)
    losses = log_normalizer - jnp.sum(jnp.where(_is_target(logits, target_ids), values, 0.0), axis=-1)
    if label_smoothing:
        mean_losses = log_normalizer - jnp.mean(values, axis=-1)
        losses = (1.0 - label_smoothing) * losses + label_smoothing * mean_losses
    return losses, (logits, target_ids, log_normalizer)


def _backward(label_smoothing, saved, d_losses):
    # One pass over the logits; probabilities are never stored.
    logits, target_ids, log_normalizer = saved
    probabilities = jnp.exp(logits.astype(jnp.float32) - log_normalizer[..., None])
    targets = jnp.where(_is_target(logits, target_ids), 1.0 - label_smoothing, 0.0) + label_smoothing / logits.shape[-1]
    return (d_losses[..., None] * (probabilities - targets)).astype(logits.dtype), None


_token_losses.defvjp(_forward, _backward)


def _is_target(logits, target_ids):
    # A comparison, not a gather: it needs no communication beyond the sum when the vocabulary is sharded.
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == target_ids[..., None]


def cross_entropy(
    logits: Float[Array, "B K V"],
    target_ids: Int[Array, "B K"],
    target_weights: Float[Array, "B K"],
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum over tokens of weight · -log p(target), and the sum of the weights; both float32.

    See `token_losses` for label smoothing.
    """
    losses = token_losses(logits, target_ids, label_smoothing)
    weights = target_weights.astype(jnp.float32)
    return jnp.sum(losses * weights), jnp.sum(weights)


def accuracy(
    logits: Float[Array, "B K V"], target_ids: Int[Array, "B K"], target_weights: Float[Array, "B K"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted number of tokens whose largest logit is the target's, and the sum of the weights; both float32."""
    weights = target_weights.astype(jnp.float32)
    correct = jnp.argmax(logits, axis=-1) == target_ids
    return jnp.sum(correct * weights), jnp.sum(weights)
