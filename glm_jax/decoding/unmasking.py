"""Writing with a masked language model: an answer of masks, whose surest token is revealed in each step.

Nie et al. 2025 (arXiv 2502.09992), section 2.4, without remasking; Mask-Predict (Ghazvininejad et al. 2019) is its kin.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from glm_jax.decoding.steps import for_inference
from glm_jax.model.transformer import GLM


@functools.partial(jax.jit, static_argnames=("model", "num_steps", "stops"))
def reveal(
    params: Any,
    tokens: Int[Array | np.ndarray, "B T"],
    lengths: Int[Array | np.ndarray, "B"],
    columns: Int[Array | np.ndarray, "B K"],
    forbidden: Int[Array | np.ndarray, "F"],
    *,
    model: GLM,
    stops: tuple[int, ...],
    num_steps: int | None = None,
) -> tuple[Int[Array, "B K"], Float[Array, "B K"]]:
    """Replaces the masks at `columns`, the surest first; what comes after an end token is not written.

    Args:
      params: of the model, or from `steps.prepare`.
      lengths: tokens of each row without padding.
      forbidden: ids that are never written.
      stops: ids that end an answer.
      num_steps: passes over the model that reveal a whole answer; by default one for each token.

    Returns:
      The ids, with the first of `stops` after the end of an answer, and the log-probability that each had when it was
      revealed, 0 after the end.
    """
    model = for_inference(model)
    batch, count = columns.shape
    each = -(-count // (num_steps or count))
    rows, place = jnp.arange(batch)[:, None], jnp.arange(count)[None]
    lengths, columns, zeros = jnp.asarray(lengths), jnp.asarray(columns), jnp.zeros(tokens.shape, jnp.int32)
    column = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    positions = jnp.where(column < lengths[:, None], column, 0)

    def step(state):
        tokens, ids, scores, hidden = state
        logits = model.apply({"params": params}, tokens, positions, zeros, lengths, columns)
        log_probs = jax.nn.log_softmax(logits).at[..., forbidden].set(-jnp.inf)
        chosen, sure = log_probs.argmax(-1).astype(jnp.int32), log_probs.max(-1)
        order = jnp.argsort(jnp.argsort(jnp.where(hidden, -sure, jnp.inf), axis=1), axis=1)
        new = hidden & (order < each)
        ids, scores = jnp.where(new, chosen, ids), jnp.where(new, sure, scores)
        ends = jnp.isin(ids, np.array(stops, np.int32))  # ids that are hidden are -1
        after = place > jnp.where(ends, place, count).min(axis=1, keepdims=True)
        ids, scores = jnp.where(after, stops[0], ids), jnp.where(after, 0.0, scores)
        tokens = tokens.at[rows, jnp.where(new | after, columns, tokens.shape[1])].set(ids, mode="drop")
        return tokens, ids, scores, hidden & ~new & ~after

    ids = jnp.full((batch, count), -1, jnp.int32)
    state = (jnp.asarray(tokens), ids, jnp.zeros((batch, count)), jnp.ones((batch, count), bool))
    _, ids, scores, _ = jax.lax.while_loop(lambda state: state[3].any(), step, state)
    return ids, scores
