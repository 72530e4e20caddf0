"""Beam search for one blank a row, in one compiled loop; scored and stopped as the original does it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int

from glm_jax.decoding import steps
from glm_jax.decoding.options import SamplingShape, SamplingValues, mask_logits, warp_logits
from glm_jax.model.transformer import GLM

_NO_BEAM = -1e9  # the score of beams that do not exist yet: below any real one, and finite


@struct.dataclass
class Hypotheses:
    """Answers with values, best first: W for each of B rows.

    `values` are sums of log-probabilities divided by length^λ, -inf where there is no hypothesis; `lengths` count
    tokens without start and end. `finished` says whether the search of a row ended by itself.
    """

    tokens: Any  # int32 [B W G]
    lengths: Any  # int32 [B W]
    values: Any  # float32 [B W]
    log_probs: Any  # float32 [B W]
    finished: Any  # bool [B]


@struct.dataclass
class _Search:
    step: Any  # int32
    cache: Any
    token: Any  # int32 [B W], of each open beam, to be fed next
    scores: Any  # float32 [B W]
    tokens: Any  # int32 [B W G]
    hypotheses: Hypotheses


def search(
    params: Any,
    context: steps.PrefillCache,
    positions: Int[Array, "B"],
    values: SamplingValues,
    *,
    model: GLM,
    shape: SamplingShape,
    num_beams: int,
    max_new_tokens: int,
    start: int,
    stops: tuple[int, ...],
    count_positions: bool = True,
) -> Hypotheses:
    """The best `num_beams` answers of at most `max_new_tokens` tokens for the blank at `positions`.

    In each step the best candidates of all beams are walked through in order. One that ends becomes a hypothesis if it
    is among the first `num_beams`; others fill the next beams. A row is finished when it has `num_beams` hypotheses and
    the best candidate, divided by (tokens before this step)^λ, is no better than the worst of them. Beams that are open
    at the end count as hypotheses. `count_positions=False` leaves the second position at 1 (ablation).

    Where the original divides by zero (λ > 0 and an end token at once), the length counts as 1.
    """
    batch, penalty = positions.shape[0], values.length_penalty
    position = jnp.broadcast_to(positions[:, None], (batch, num_beams))

    def step(search: _Search) -> _Search:
        block_position = jnp.full_like(position, 1) + (search.step if count_positions else 0)
        logits, cache = steps.forward(
            params, context, search.cache, search.step, search.token, position, block_position, model=model
        )
        scores, beam, token = _candidates(logits, search, shape, values, stops)
        ends = jnp.isin(token, np.array(stops, np.int32))
        hypotheses = _collect(search, scores, beam, ends, penalty)
        return _continue(search, cache, scores, beam, token, ends, hypotheses)

    search = _first(context, batch, num_beams, max_new_tokens, start)
    search = jax.lax.while_loop(
        lambda search: (search.step < max_new_tokens) & ~search.hypotheses.finished.all(), step, search
    )
    is_open = ~search.hypotheses.finished[:, None] & (search.scores > _NO_BEAM / 2)
    merged = _merge(search.hypotheses, search.tokens, search.scores, search.step, is_open, penalty)
    return jax.tree.map(steps.everywhere, merged)  # every host reads them


def _first(context, batch, num_beams, max_new_tokens, start) -> _Search:
    """One beam a row with nothing but the start token; no hypotheses."""
    tokens = jnp.zeros((batch, num_beams, max_new_tokens), jnp.int32)
    hypotheses = Hypotheses(
        tokens=tokens,
        lengths=jnp.zeros((batch, num_beams), jnp.int32),
        values=jnp.full((batch, num_beams), -jnp.inf),
        log_probs=jnp.zeros((batch, num_beams)),
        finished=jnp.zeros(batch, bool),
    )
    return _Search(
        step=jnp.int32(0),
        cache=steps.empty_answers(context, num_beams, max_new_tokens),
        token=jnp.full((batch, num_beams), start, jnp.int32),
        scores=jnp.where(jnp.arange(num_beams) == 0, 0.0, _NO_BEAM)[None].repeat(batch, 0),
        tokens=tokens,
        hypotheses=hypotheses,
    )


def _candidates(logits, search, shape, values, stops):
    """The best continuations of a row, best first: scores, beam and token of each. Enough that W of them go on."""
    batch, num_beams, vocab_size = logits.shape
    log_probs = jax.nn.log_softmax(warp_logits(logits, shape, values))
    length = jnp.broadcast_to(search.step, (batch, num_beams))
    log_probs = mask_logits(log_probs, length, search.tokens, search.step, stops, shape, values)
    candidates = (log_probs + search.scores[..., None]).reshape(batch, -1)
    scores, index = jax.lax.top_k(candidates, (1 + len(stops)) * num_beams)
    return scores, index // vocab_size, (index % vocab_size).astype(jnp.int32)


def _collect(search, scores, beam, ends, penalty) -> Hypotheses:
    """The hypotheses with those that end in this step, and which rows are finished."""
    rows, leading = jnp.arange(scores.shape[0])[:, None], slice(None, search.scores.shape[1])
    is_open = ~search.hypotheses.finished[:, None]
    valid = ends[:, leading] & is_open & (scores[:, leading] > _NO_BEAM / 2)
    tokens = search.tokens[rows, beam[:, leading]]
    hypotheses = _merge(search.hypotheses, tokens, scores[:, leading], search.step, valid, penalty)
    enough = jnp.isfinite(hypotheses.values).all(1)
    hopeless = hypotheses.values.min(1) >= scores[:, 0] / jnp.maximum(search.step, 1) ** penalty
    return hypotheses.replace(finished=hypotheses.finished | (enough & hopeless))


def _merge(hypotheses: Hypotheses, tokens, log_probs, length, valid, penalty) -> Hypotheses:
    """The best of the hypotheses and of the answers offered; where equal, the earlier ones stay."""
    rows = jnp.arange(tokens.shape[0])[:, None]
    offered = jnp.where(valid, log_probs / jnp.maximum(length, 1) ** penalty, -jnp.inf)
    best, index = jax.lax.top_k(jnp.concatenate([hypotheses.values, offered], axis=1), tokens.shape[1])
    all_tokens = jnp.concatenate([hypotheses.tokens, tokens], axis=1)
    lengths = jnp.broadcast_to(length, offered.shape).astype(jnp.int32)
    lengths = jnp.concatenate([hypotheses.lengths, lengths], axis=1)
    log_probs = jnp.concatenate([hypotheses.log_probs, log_probs], axis=1)
    return hypotheses.replace(
        tokens=all_tokens[rows, index], lengths=lengths[rows, index], values=best, log_probs=log_probs[rows, index]
    )


def _continue(search, cache, scores, beam, token, ends, hypotheses) -> _Search:
    """The best candidates that do not end become the beams of the next step."""
    rows, leading = jnp.arange(scores.shape[0])[:, None], slice(None, search.scores.shape[1])
    following = jnp.argsort(ends, axis=1, stable=True)[:, leading]
    parent, chosen = beam[rows, following], token[rows, following]
    tokens = jax.lax.dynamic_update_slice(search.tokens[rows, parent], chosen[..., None], (0, 0, search.step))
    return _Search(
        step=search.step + 1,
        cache=jax.tree.map(lambda a: _reorder(a, parent), cache),
        token=chosen,
        scores=scores[rows, following],
        tokens=tokens,
        hypotheses=hypotheses,
    )


def _reorder(cache, parent):
    """Gives every beam the cache of its parent; `cache` is [… B W N, H and G in either order]."""
    index = parent.reshape(*(1,) * (cache.ndim - 5), *parent.shape, 1, 1, 1)
    return jnp.take_along_axis(cache, index, axis=cache.ndim - 4)
