"""Filters and bans on logits, applied before a token is chosen.

Every function works on the last axis and on any number of leading axes, and leaves the logits it keeps untouched.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

BANNED = -jnp.inf


def top_k_filter(logits: Float[Array, "*rows V"], k: int) -> Float[Array, "*rows V"]:
    """Keeps the k largest logits, and those equal to the k-th (as the original does)."""
    kth = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits < kth, BANNED, logits)


def top_p_filter(logits: Float[Array, "*rows V"], p: Float[Array, ""] | float) -> Float[Array, "*rows V"]:
    """Keeps the most probable tokens, each while those above it sum up to at most p (Holtzman et al. 2020).

    So the most probable token always stays, and the one that crosses p stays too, as in the original.
    """
    order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
    probabilities = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    # The exclusive sum is shifted, not the inclusive sum minus the token: that would not be exactly 0 for the first.
    inclusive = jnp.cumsum(probabilities, axis=-1)
    exclusive = jnp.concatenate([jnp.zeros_like(inclusive[..., :1]), inclusive[..., :-1]], axis=-1)
    rank = jnp.argsort(order, axis=-1)
    return jnp.where(jnp.take_along_axis(exclusive, rank, axis=-1) > p, BANNED, logits)


def repeated_ngrams(
    tokens: Int[Array, "*rows G"], length: Int[Array, ""], n: int, vocab_size: int
) -> Bool[Array, "*rows V"]:
    """Tokens that would repeat an n-gram of the first `length` entries of `tokens`."""
    capacity = tokens.shape[-1]
    if capacity < n:
        return jnp.zeros((*tokens.shape[:-1], vocab_size), bool)

    def banned(tokens):
        starts = jnp.arange(capacity - n + 1)
        matches = starts + n <= length  # the whole n-gram is there
        for offset in range(n - 1):  # and begins as the newest n - 1 tokens do
            matches &= tokens[starts + offset] == tokens[length - (n - 1) + offset]
        # A match sets a flag; without one the index is out of bounds and dropped.
        return (
            jnp.zeros(vocab_size, bool)
            .at[jnp.where(matches, tokens[starts + n - 1], vocab_size)]
            .set(True, mode="drop")
        )

    flat = jax.vmap(banned)(tokens.reshape(-1, capacity))
    return flat.reshape(*tokens.shape[:-1], vocab_size)


def ban(logits: Float[Array, "*rows V"], banned: Bool[Array, "*#rows V"]) -> Float[Array, "*rows V"]:
    """Gives `banned` tokens probability 0."""
    return jnp.where(banned, BANNED, logits)
