"""Writing with a masked language model: an answer of masks, whose surest token is revealed in each step.

Nie et al. 2025 (arXiv 2502.09992), section 2.4, without remasking; Mask-Predict (Ghazvininejad et al. 2019) is its kin.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from glm_jax.decoding.decoder import Completion, bucket
from glm_jax.decoding.options import DecodingError
from glm_jax.decoding.prompts import EncodedPrompt
from glm_jax.model.config import check_lengths
from glm_jax.model.transformer import GLM
from glm_jax.tokenizers.special import SpecialTokens


def unmask(
    model: GLM,
    params: Any,
    special: SpecialTokens,
    prompts: Sequence[EncodedPrompt],
    *,
    max_new_tokens: int,
    num_steps: int | None = None,
    forbidden: Sequence[int] = (),
    batch_size: int = 16,
) -> list[list[Completion]]:
    """One completion of each prompt, which has one blank.

    Args:
      max_new_tokens: masks that an answer begins with; it ends before its first end token.
      num_steps: passes over a batch, each of which reveals the same share of an answer; by default a pass a token.
      forbidden: ids that are never written.
      batch_size: prompts that are decoded together; a completion does not depend on the others.

    Raises:
      DecodingError: a prompt with several blanks, or with an answer that is given in part.
      ValueError: a prompt that is longer, with its answer, than the model.
    """
    if any(len(prompt.blanks) != 1 or prompt.answer_prefix for prompt in prompts):
        raise DecodingError("a masked language model fills one blank a prompt, and all of it")
    steps = min(num_steps or max_new_tokens, max_new_tokens)
    lengths = [len(prompt.part_a) - 1 + max_new_tokens for prompt in prompts]
    check_lengths(model.config, max(lengths, default=1) - 1)
    results: list[list[Completion]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: bucket(lengths[i]))
    for at in range(0, len(order), batch_size):
        numbers = order[at : at + batch_size]
        tokens = np.full((batch_size, bucket(max(lengths[i] for i in numbers))), special.pad, np.int32)
        sizes, columns = np.zeros(batch_size, np.int32), np.zeros((batch_size, max_new_tokens), np.int32)
        for row, i in enumerate(numbers):
            part_a, (blank,) = prompts[i].part_a, prompts[i].blanks
            tokens[row, : lengths[i]] = *part_a[:blank], *[special.mask] * max_new_tokens, *part_a[blank + 1 :]
            sizes[row], columns[row] = lengths[i], np.arange(blank, blank + max_new_tokens)
        ids, scores = jax.device_get(
            reveal(params, tokens, sizes, columns, model=model, num_steps=steps, forbidden=tuple(forbidden))
        )
        for row, i in enumerate(numbers):
            stops = np.flatnonzero(np.isin(ids[row], (special.end, special.eos)))
            count = int(stops[0]) if stops.size else max_new_tokens
            score = float(scores[row, : count + 1].sum())
            results[i] = [Completion((tuple(ids[row, :count].tolist()),), (score,))]
    return results


@functools.partial(jax.jit, static_argnames=("model", "num_steps", "forbidden"))
def reveal(
    params: Any,
    tokens: Int[Array | np.ndarray, "B T"],
    lengths: Int[Array | np.ndarray, "B"],
    columns: Int[Array | np.ndarray, "B K"],
    *,
    model: GLM,
    num_steps: int,
    forbidden: tuple[int, ...] = (),
) -> tuple[Int[Array, "B K"], Float[Array, "B K"]]:
    """Replaces the masks at `columns` in `num_steps` passes, the surest first.

    Returns:
      The ids, and the log-probability that each had when it was revealed.
    """
    batch, count = columns.shape
    rows, zeros = jnp.arange(batch)[:, None], jnp.zeros(tokens.shape, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)

    def step(number, state):
        tokens, ids, scores, hidden = state
        logits = model.apply({"params": params}, tokens, positions, zeros, jnp.asarray(lengths), jnp.asarray(columns))
        log_probs = jax.nn.log_softmax(logits)
        if forbidden:
            log_probs = log_probs.at[..., np.array(forbidden)].set(-jnp.inf)
        chosen, sure = log_probs.argmax(-1).astype(jnp.int32), log_probs.max(-1)
        goal = (number + 1) * count // num_steps  # revealed after this step
        place = jnp.argsort(jnp.argsort(jnp.where(hidden, -sure, -jnp.inf), axis=1), axis=1)  # those revealed are first
        new = hidden & (place < goal)
        ids, scores = jnp.where(new, chosen, ids), jnp.where(new, sure, scores)
        at = jnp.where(new, columns, tokens.shape[1])
        return tokens.at[rows, at].set(chosen, mode="drop"), ids, scores, hidden & ~new

    ids = jnp.zeros((batch, count), jnp.int32)
    state = (jnp.asarray(tokens), ids, jnp.zeros((batch, count)), jnp.ones((batch, count), bool))
    _, ids, scores, _ = jax.lax.fori_loop(0, num_steps, step, state)
    return ids, scores
