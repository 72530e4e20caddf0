"""Decoding token by token, greedily or by sampling, in one compiled loop over any number of blanks.

All answers of a batch share the column of the cache that they write to: in every step each live answer feeds exactly
one token, a start token or the token that it chose last. A completed answer does not change.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from glm_jax.decoding import steps
from glm_jax.decoding.options import SamplingShape, SamplingValues, mask_logits, warp_logits
from glm_jax.model.transformer import GLM


@struct.dataclass
class DecodeState:
    """Answers that are being decoded: W for each of B rows, G columns each.

    `tokens`, `blanks` and `log_probs` record what was chosen in each column: the token; the blank of the row that it
    belongs to, in the order of filling, -1 where nothing was chosen; and its log-probability under the model (natural
    logarithm, before temperature, filters and bans).
    `token`, `position` and `blank` are those of the token that is fed next. Of its answer, `prefilled` tokens are in
    the context and `generated` were chosen here.
    """

    step: Any  # int32
    cache: Any
    token: Any  # int32 [B W]
    position: Any  # int32 [B W]
    blank: Any  # int32 [B W]
    prefilled: Any  # int32 [B W]
    generated: Any  # int32 [B W]
    live: Any  # bool [B W]
    keys: Any  # PRNG keys [B W]
    tokens: Any  # int32 [B W G]
    blanks: Any  # int32 [B W G]
    log_probs: Any  # float32 [B W G]


def init_state(
    context: steps.PrefillCache,
    mask_columns: Int[Array, "B S"],
    keys: Key[Array, "B W"],
    first_token: Int[Array, "B"],
    prefilled: Int[Array, "B"],
    *,
    max_new_tokens: int,
) -> DecodeState:
    """An empty answer for the first blank of each row.

    Args:
      mask_columns: columns of the blanks, in the order of filling; -1 after the last.
      first_token: the token to feed first: the start token, or the last given token of an answer that is given in part.
      prefilled: how many tokens of that answer are in the context, its start token included.
      max_new_tokens: longest answer; G is what S answers of that length and their start tokens need.
    """
    batch, width = keys.shape
    capacity = mask_columns.shape[1] * (max_new_tokens + 1)
    fill = functools.partial(jnp.full, dtype=jnp.int32)
    first = jnp.broadcast_to(mask_columns[:, :1], keys.shape)
    return DecodeState(
        step=jnp.int32(0),
        cache=steps.empty_answers(context, width, capacity),
        token=jnp.broadcast_to(first_token[:, None], keys.shape),
        position=jnp.maximum(first, 0).astype(jnp.int32),
        blank=fill(keys.shape, 0),
        prefilled=jnp.broadcast_to(prefilled[:, None], keys.shape),
        generated=fill(keys.shape, 0),
        live=first >= 0,
        keys=keys,
        tokens=fill((batch, width, capacity), 0),
        blanks=fill((batch, width, capacity), -1),
        log_probs=jnp.zeros((batch, width, capacity), jnp.float32),
    )


def decode_loop(
    params: Any,
    context: steps.PrefillCache,
    mask_columns: Int[Array, "B S"],
    state: DecodeState,
    limit: Int[Array, ""],
    values: SamplingValues,
    *,
    model: GLM,
    shape: SamplingShape,
    start: int,
    stops: tuple[int, ...],
    max_new_tokens: int,
    feed_truncated_token: bool = True,
) -> DecodeState:
    """Decodes until every answer is complete or column `limit` is reached.

    An answer ends with one of `stops`, which is recorded but not part of it, or at `max_new_tokens`. The row then goes
    on with its next blank, which attends to the answers so far. The last token of a truncated answer is fed before
    that, as in training; `feed_truncated_token=False` skips it, as the original does.
    """
    num_blanks = (mask_columns >= 0).sum(1)[:, None]

    def step(state: DecodeState) -> DecodeState:
        block_position = state.prefilled + state.generated + 1
        logits, cache = steps.forward(
            params, context, state.cache, state.step, state.token, state.position, block_position, model=model
        )
        chosen = _choose(logits, state, start, stops, shape, values)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), chosen[..., None], axis=-1)[..., 0]
        outcome = _judge(state, chosen, num_blanks, stops, max_new_tokens, feed_truncated_token)
        return _advance(state, cache, chosen, log_prob, outcome, mask_columns, num_blanks, start)

    limit = jnp.minimum(limit, state.tokens.shape[-1])
    state = jax.lax.while_loop(lambda state: (state.step < limit) & state.live.any(), step, state)
    # Every host reads the records.
    record = {name: steps.everywhere(getattr(state, name)) for name in ("tokens", "blanks", "log_probs", "live")}
    return state.replace(**record)


def _choose(
    logits: Float[Array, "B W V"],
    state: DecodeState,
    start: int,
    stops: tuple[int, ...],
    shape: SamplingShape,
    values: SamplingValues,
) -> Int[Array, "B W"]:
    """The most probable token that is allowed, or one drawn with the key of its row, answer and step."""
    history = jnp.where(jnp.isin(state.tokens, np.array(stops)), start, state.tokens)  # answers, separated by starts
    allowed = mask_logits(logits, state.generated, history, state.step, stops, shape, values)
    if shape.sample:
        keys = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, state.step)))(state.keys)
        chosen = jax.vmap(jax.vmap(jax.random.categorical))(keys, warp_logits(allowed, shape, values))
    else:
        chosen = allowed.argmax(-1)
    return chosen.astype(jnp.int32)


class _Outcome(NamedTuple):
    """What a step means for each answer.

    refeeds: the last token of a truncated answer was fed, and nothing is chosen.
    chooses: the chosen token counts.
    generated: tokens of the answer after this step.
    closes: the answer is complete.
    """

    refeeds: Bool[Array, "B W"]
    chooses: Bool[Array, "B W"]
    generated: Int[Array, "B W"]
    closes: Bool[Array, "B W"]


def _judge(state, chosen, num_blanks, stops, max_new_tokens, feed_truncated_token) -> _Outcome:
    refeeds = state.generated == max_new_tokens
    chooses = state.live & ~refeeds
    stopped = functools.reduce(jnp.logical_or, [chosen == stop for stop in stops])
    generated = state.generated + (chooses & ~stopped)
    truncated = generated == max_new_tokens
    is_last = state.blank + 1 >= num_blanks  # nothing attends to its last token
    closes = state.live & (refeeds | (chooses & stopped) | (truncated & (is_last | (not feed_truncated_token))))
    return _Outcome(refeeds, chooses, generated, closes)


def _advance(state, cache, chosen, log_prob, outcome: _Outcome, mask_columns, num_blanks, start) -> DecodeState:
    """Records the step; an answer that closes is followed by the start token of the row's next blank."""
    rows = jnp.arange(state.token.shape[0])[:, None]
    blank = state.blank + outcome.closes
    next_column = mask_columns[rows, jnp.minimum(blank, mask_columns.shape[1] - 1)]
    return DecodeState(
        step=state.step + 1,
        cache=cache,
        token=jnp.where(outcome.closes, start, chosen),
        position=jnp.where(outcome.closes, jnp.maximum(next_column, 0), state.position),
        blank=blank,
        prefilled=jnp.where(outcome.closes, 0, state.prefilled),
        generated=jnp.where(outcome.closes, 0, outcome.generated),
        live=state.live & (blank < num_blanks),
        keys=state.keys,
        tokens=_put(state.tokens, jnp.where(outcome.refeeds, start, chosen), state.step),
        blanks=_put(state.blanks, jnp.where(outcome.chooses, state.blank, -1), state.step),
        log_probs=_put(state.log_probs, log_prob, state.step),
    )


def _put(record, column, step):
    return jax.lax.dynamic_update_slice(record, column[..., None].astype(record.dtype), (0, 0, step))
