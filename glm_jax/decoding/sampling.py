"""Writing answers token by token, greedily or by sampling, in one compiled loop over any number of blanks.

All answers of a batch share the column they write to: in every step each live answer feeds exactly one token, be it a
start token or the token chosen before. An answer that is complete changes nothing any more.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int, Key

from glm_jax.decoding import steps
from glm_jax.decoding.options import SamplingShape, SamplingValues, mask_logits, warp_logits
from glm_jax.model.transformer import GLM


@struct.dataclass
class DecodeState:
    """Answers in the making: W for each of B rows, G columns each.

    `tokens`, `blanks` and `log_probs` record the choice made in each column: the token, which of the row's blanks it
    belongs to (in the order of filling; -1 where nothing was chosen), and the log-probability that the model gave it
    (natural logarithm, before temperature, filters and bans). `token` … `written` describe the token that is fed next
    and the answer it belongs to: `before` tokens of it stand in the context, `written` were chosen here.
    """

    step: Any  # int32
    cache: Any
    token: Any  # int32 [B W]
    position: Any  # int32 [B W]
    blank: Any  # int32 [B W]
    before: Any  # int32 [B W]
    written: Any  # int32 [B W]
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
    before: Int[Array, "B"],
    *,
    max_new_tokens: int,
) -> DecodeState:
    """An empty answer for the first blank of each row; `mask_columns` in the order of filling, -1 behind the last.

    `first_token` opens it: the start token, or, where `before` tokens of the answer are given (start token included),
    the one that follows those. G is what S full answers and their start tokens need.
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
        before=jnp.broadcast_to(before[:, None], keys.shape),
        written=fill(keys.shape, 0),
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
    writing: DecodeState,
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
    """Goes on until every answer is complete or column `limit` is reached.

    An answer ends with one of `stops`, which is recorded but no part of it, or at `max_new_tokens`. Then the row goes
    on with its next blank, which sees what is already written. An answer that was cut is first read to its last token,
    as in training; `feed_truncated_token=False` skips that token, as the original does.
    """
    rows = jnp.arange(writing.token.shape[0])[:, None]
    counts = (mask_columns >= 0).sum(1)[:, None]

    def body(w: DecodeState) -> DecodeState:
        place = w.before + w.written + 1
        logits, cache = steps.forward(params, context, w.cache, w.step, w.token, w.position, place, model=model)
        history = jnp.where(jnp.isin(w.tokens, np.array(stops)), start, w.tokens)  # all answers, parted by starts
        allowed = mask_logits(logits, w.written, history, w.step, stops, shape, values)
        if shape.sample:
            keys = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, w.step)))(w.keys)
            chosen = jax.vmap(jax.vmap(jax.random.categorical))(keys, warp_logits(allowed, shape, values))
        else:
            chosen = allowed.argmax(-1)
        chosen = chosen.astype(jnp.int32)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), chosen[..., None], axis=-1)[..., 0]

        reread = w.written == max_new_tokens  # the last token of a cut answer was fed; there is nothing to choose
        choosing = w.live & ~reread
        stopped = functools.reduce(jnp.logical_or, [chosen == stop for stop in stops])
        adds = choosing & ~stopped
        written = w.written + adds
        full = written == max_new_tokens
        last = w.blank + 1 >= counts
        closes = w.live & (reread | (choosing & stopped) | (full & (last | (not feed_truncated_token))))
        blank = w.blank + closes
        next_mask = mask_columns[rows, jnp.minimum(blank, mask_columns.shape[1] - 1)]
        return DecodeState(
            step=w.step + 1,
            cache=cache,
            token=jnp.where(closes, start, chosen),
            position=jnp.where(closes, jnp.maximum(next_mask, 0), w.position),
            blank=blank,
            before=jnp.where(closes, 0, w.before),
            written=jnp.where(closes, 0, written),
            live=w.live & (blank < counts),
            keys=w.keys,
            tokens=_put(w.tokens, jnp.where(reread, start, chosen), w.step),
            blanks=_put(w.blanks, jnp.where(choosing, w.blank, -1), w.step),
            log_probs=_put(w.log_probs, log_prob, w.step),
        )

    limit = jnp.minimum(limit, writing.tokens.shape[-1])
    writing = jax.lax.while_loop(lambda w: (w.step < limit) & w.live.any(), body, writing)
    # Every host reads the records.
    record = {name: steps.everywhere(getattr(writing, name)) for name in ("tokens", "blanks", "log_probs", "live")}
    return writing.replace(**record)


def _put(record, column, step):
    return jax.lax.dynamic_update_slice(record, column[..., None].astype(record.dtype), (0, 0, step))
