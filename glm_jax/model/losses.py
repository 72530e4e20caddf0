"""Token losses as weighted sums: the caller divides once, over all that it averages (batches, devices, steps)."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_losses(
    logits: Float[Array, "B K V"], target_ids: Int[Array, "B K"], label_smoothing: float = 0.0
) -> Float[Array, "B K"]:
    """-log p(target) of every token in nats, float32.

    With label smoothing e a token's loss is (1 - e) · -log p(target) + e · mean over the vocabulary of -log p, the
    form in which the original fine-tunes on sequence-to-sequence tasks. Raises ValueError for e outside [0, 1).
    """
    check_label_smoothing(label_smoothing)
    return _token_losses(logits, target_ids, label_smoothing)


def check_label_smoothing(label_smoothing: float) -> None:
    """Raises ValueError for a value outside [0, 1)."""
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing {label_smoothing} must lie in [0, 1)")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
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
    # In one pass over the logits; probabilities are never kept.
    logits, target_ids, log_normalizer = saved
    probabilities = jnp.exp(logits.astype(jnp.float32) - log_normalizer[..., None])
    wanted = jnp.where(_is_target(logits, target_ids), 1.0 - label_smoothing, 0.0) + label_smoothing / logits.shape[-1]
    return (d_losses[..., None] * (probabilities - wanted)).astype(logits.dtype), None


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
