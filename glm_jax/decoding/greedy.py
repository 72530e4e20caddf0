"""Greedy filling of any number of blanks in a batch of prompts, in one compiled loop."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from glm_jax.model import GLM


@functools.partial(jax.jit, static_argnames=("model", "start", "stops", "max_new_tokens", "length"))
def fill_blanks(
    params,
    prompts: Int[Array, "B P"],
    prompt_lengths: Int[Array, "B"],
    blanks: Int[Array, "B S"],
    *,
    model: GLM,
    start: int,
    stops: tuple[int, ...],
    max_new_tokens: int,
    length: int,
) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """Fills the blanks of each prompt from left to right; later blanks see earlier answers, as in training.

    `blanks` are the columns of the mask tokens in ascending order, -1 behind the last. `length` is T, the columns of
    the working buffer: at least P + S · (max_new_tokens + 1). An answer ends with one of `stops` (which is not kept) or
    after `max_new_tokens`. Returns Part B of each row from column 0 on, as tokens (`start` answer `start` answer …) and
    block positions (1 where an answer starts, 0 behind the last).
    """
    batch, width = prompts.shape
    column = jnp.arange(length)[None]
    in_prompt = column < prompt_lengths[:, None]
    rows = jnp.arange(batch)
    counts = (blanks >= 0).sum(1)

    def put(array, at, values, write):
        return array.at[rows, at].set(jnp.where(write, values, array[rows, at]))

    def body(carry):
        tokens, positions, block_positions, cursor, blank, live = carry
        logits = model.apply(
            {"params": params}, tokens, positions, block_positions, prompt_lengths, target_index=cursor[:, None]
        )
        chosen = logits[:, 0].argmax(-1).astype(jnp.int32)
        stopped = functools.reduce(jnp.logical_or, [chosen == stop for stop in stops])
        offset = block_positions[rows, cursor]
        full = offset == max_new_tokens
        # A full answer keeps its last token, and only then is closed: two columns in one step.
        tokens = put(tokens, cursor + 1, chosen, live & ~stopped)
        positions = put(positions, cursor + 1, positions[rows, cursor], live & ~stopped)
        block_positions = put(block_positions, cursor + 1, offset + 1, live & ~stopped)
        cursor = jnp.where(live & ~stopped, cursor + 1, cursor)
        close = live & (stopped | full)
        blank = blank + close
        live = live & (blank < counts)
        begin = close & live
        mask_column = blanks[rows, jnp.minimum(blank, blanks.shape[1] - 1)]
        tokens = put(tokens, cursor + 1, start, begin)
        positions = put(positions, cursor + 1, mask_column, begin)
        block_positions = put(block_positions, cursor + 1, 1, begin)
        return tokens, positions, block_positions, jnp.where(begin, cursor + 1, cursor), blank, live

    tokens = jnp.where(in_prompt, jnp.pad(prompts, ((0, 0), (0, length - width))), 0)
    positions = jnp.where(in_prompt, column, 0)
    live = counts > 0
    first = jnp.maximum(blanks[:, 0], 0)
    tokens = put(tokens, prompt_lengths, start, live)
    positions = put(positions, prompt_lengths, first, live)
    block_positions = put(jnp.zeros_like(tokens), prompt_lengths, 1, live)
    carry = (tokens, positions, block_positions, prompt_lengths, jnp.zeros_like(counts), live)
    tokens, _, block_positions, *_ = jax.lax.while_loop(lambda carry: carry[-1].any(), body, carry)
    part_b = (column + prompt_lengths[:, None]) % length
    return jnp.take_along_axis(tokens, part_b, axis=1), jnp.take_along_axis(block_positions, part_b, axis=1)
