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
    token: Any  # int32 [B W]
    scores: Any  # float32 [B W]
    tokens: Any  # int32 [B W G]
    found: Hypotheses


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
    batch = positions.shape[0]
    width, penalty = num_beams, values.length_penalty
    rows = jnp.arange(batch)[:, None]
    position = jnp.broadcast_to(positions[:, None], (batch, width))
    nothing = jnp.zeros((batch, width, max_new_tokens), jnp.int32)
    found = Hypotheses(
        tokens=nothing,
        lengths=jnp.zeros((batch, width), jnp.int32),
        values=jnp.full((batch, width), -jnp.inf),
        log_probs=jnp.zeros((batch, width)),
        finished=jnp.zeros(batch, bool),
    )

    def merge(found, tokens, log_probs, length, valid):
        """The best `width` of the hypotheses found and those offered; where equal, the earlier ones stay."""
        offered = jnp.where(valid, log_probs / jnp.maximum(length, 1) ** penalty, -jnp.inf)
        best, index = jax.lax.top_k(jnp.concatenate([found.values, offered], axis=1), width)
        both = jnp.concatenate([found.tokens, tokens], axis=1)
        lengths = jnp.concatenate([found.lengths, jnp.broadcast_to(length, offered.shape).astype(jnp.int32)], axis=1)
        sums = jnp.concatenate([found.log_probs, log_probs], axis=1)
        return found.replace(tokens=both[rows, index], lengths=lengths[rows, index], values=best,
                             log_probs=sums[rows, index])  # fmt: skip

    def body(s: _Search) -> _Search:
        place = jnp.full_like(position, 1) + (s.step if count_positions else 0)
        logits, cache = steps.forward(params, context, s.cache, s.step, s.token, position, place, model=model)
        vocabulary = logits.shape[-1]
        log_probs = jax.nn.log_softmax(warp_logits(logits, shape, values))
        length = jnp.broadcast_to(s.step, position.shape)
        log_probs = mask_logits(log_probs, length, s.tokens, s.step, stops, shape, values)
        candidates = (log_probs + s.scores[..., None]).reshape(batch, -1)
        sums, index = jax.lax.top_k(candidates, (1 + len(stops)) * width)
        beam, token = index // vocabulary, (index % vocabulary).astype(jnp.int32)

        ends = jnp.isin(token, np.array(stops, np.int32))
        leading = slice(None, width)
        open_row = ~s.found.finished[:, None]
        valid = ends[:, leading] & open_row & (sums[:, leading] > _NO_BEAM / 2)
        found = merge(s.found, s.tokens[rows, beam[:, leading]], sums[:, leading], s.step, valid)
        enough = jnp.isfinite(found.values).all(1)
        hopeless = found.values.min(1) >= sums[:, 0] / jnp.maximum(s.step, 1) ** penalty
        found = found.replace(finished=found.finished | (enough & hopeless))

        following = jnp.argsort(ends, axis=1, stable=True)[:, leading]  # those that go on, in order
        parent, chosen = beam[rows, following], token[rows, following]
        tokens = jax.lax.dynamic_update_slice(s.tokens[rows, parent], chosen[..., None], (0, 0, s.step))
        return _Search(
            step=s.step + 1,
            cache=jax.tree.map(lambda a: _reorder(a, parent), cache),
            token=chosen,
            scores=sums[rows, following],
            tokens=tokens,
            found=found,
        )

    search = _Search(
        step=jnp.int32(0),
        cache=steps.empty_answers(context, width, max_new_tokens),
        token=jnp.full((batch, width), start, jnp.int32),
        scores=jnp.where(jnp.arange(width) == 0, 0.0, _NO_BEAM)[None].repeat(batch, 0),
        tokens=nothing,
        found=found,
    )
    search = jax.lax.while_loop(lambda s: (s.step < max_new_tokens) & ~s.found.finished.all(), body, search)
    still_open = ~search.found.finished[:, None] & (search.scores > _NO_BEAM / 2)
    merged = merge(search.found, search.tokens, search.scores, search.step, still_open)
    return jax.tree.map(steps.everywhere, merged)  # every host reads them


def _reorder(cache, parent):
    """Gives every beam the cache of its parent; `cache` is [… B W N, H and G in either order]."""
    index = parent.reshape(*(1,) * (cache.ndim - 5), *parent.shape, 1, 1, 1)
    return jnp.take_along_axis(cache, index, axis=cache.ndim - 4)
