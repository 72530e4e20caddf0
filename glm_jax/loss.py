"""Token losses as weighted sums: the caller divides once, over all that it averages (batches, devices, steps)."""

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
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing {label_smoothing} must lie in [0, 1)")
    logits = logits.astype(jnp.float32)
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    # A comparison, not a gather: its gradient is a select instead of a scatter into [B K V], and it needs no
    # communication beyond the sum when the vocabulary is sharded.
    is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == target_ids[..., None]
    losses = log_normalizer - jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    if label_smoothing:
        mean_losses = log_normalizer - jnp.mean(logits, axis=-1)
        losses = (1.0 - label_smoothing) * losses + label_smoothing * mean_losses
    return losses


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
