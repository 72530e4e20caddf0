"""Examples of the language models that GLM is compared with, from the same rows, for the same network.

causal_lm            every token from those before it (GPT, Radford et al. 2018)
prefix_lm            the row is cut at a random place; what follows is predicted, and sees what came before in both
                     directions (Liu et al. 2018, Raffel et al. 2020)
fill_in_the_middle   causal, but in half of the rows a random part stands at the end, where it is written last: prefix,
                     mask, suffix, start, middle, end (Bavarian et al. 2022, arXiv 2207.14255)
masked_diffusion     a random share of the tokens is masked, weighted by the inverse of that share, so that the loss
                     bounds the log-likelihood (Nie et al. 2025, arXiv 2502.09992, with its estimator of low variance)

Masked language modelling is `CorruptionConfig.masked_lm`, sentinels are `CorruptionConfig.sentinel_offset`. Written
once for JAX and NumPy: `xp` is the array module, `random` is `random_bits` or `numpy_random`.
"""

from types import ModuleType
from typing import Any

import numpy as np

from glm_jax.tokenizers.special import SpecialTokens

# The layout of the model that each trains, see `GLMConfig.layout`.
BASELINES = {
    "causal_lm": "causal",
    "prefix_lm": "prefix",
    "fill_in_the_middle": "causal",
    "masked_diffusion": "masked",
}
FILL_IN_THE_MIDDLE_RATE = 0.5  # of the rows
_ADDED = {"fill_in_the_middle": 3}  # tokens that a row gains


def row_length(baseline: str, length: int) -> int:
    """T for rows of `length` raw tokens."""
    return length + _ADDED.get(baseline, 0)


def num_words(baseline: str, length: int) -> int:
    """How many random words an example needs."""
    return {"causal_lm": 0, "prefix_lm": 1, "fill_in_the_middle": 3, "masked_diffusion": length + 1}[baseline]


def baseline_example(
    baseline: str, tokens: Any, length: Any, loss_mask: Any, words: Any, num_targets: int, special: SpecialTokens,
    *, xp: ModuleType, random: ModuleType,
) -> dict[str, Any]:  # fmt: skip
    """The fields of a `Batch` for one row, without the batch axis.

    Args:
      tokens, loss_mask: the raw row, [L].
      length: its tokens without padding.
      words: uint32 [num_words].
      num_targets: K.
    """
    if baseline == "masked_diffusion":
        fields = _masked_diffusion(tokens, length, words, num_targets, special, xp, random)
    else:
        source = xp.arange(row_length(baseline, tokens.size))
        row, size, first = tokens, length, 0
        if baseline == "prefix_lm":
            first = random.uniform_int(words[0], xp.maximum(length - 1, 1))
        if baseline == "fill_in_the_middle":
            row, source, size = _middle_last(tokens, length, words, special, xp, random)
        fields = _next_tokens(row, source, size, first, num_targets, tokens.size, special, xp)
        # In front of a prefix LM's first target stands its prefix; the others have none.
        fields["prefix_lengths"] = xp.where(length > 0, first + 1, 0) if baseline == "prefix_lm" else 0 * length
    source = fields["target_source"]
    weights = xp.where(source < tokens.size, loss_mask[xp.clip(source, 0, tokens.size - 1)], 1.0)
    fields["target_weights"] = (fields["target_weights"] * weights).astype(xp.float32)
    fields["block_position_ids"] = xp.zeros_like(fields["tokens"])
    return {
        name: value if name == "target_weights" else xp.asarray(value).astype(xp.int32)
        for name, value in fields.items()
    } | {"objective": xp.asarray(0).astype(xp.int32)}


def _next_tokens(row, source, size, first, num_targets, raw_length, special, xp):
    """Column i predicts what stands at i + 1, from column `first` on. Tokens that are placed are no targets."""
    column, target = xp.arange(row.size), xp.arange(num_targets)
    index = first + target
    is_used = index + 1 < size
    following = xp.clip(index + 1, 0, row.size - 1)
    ids = row[following]
    placed = (source[following] >= raw_length) & (ids != special.end)
    return {
        "tokens": xp.where(column < size, row, special.pad),
        "position_ids": xp.where(column < size, column, 0),
        "target_index": xp.where(is_used, index, 0),
        "target_ids": xp.where(is_used, ids, special.pad),
        "target_weights": xp.where(is_used & ~placed, 1.0, 0.0),
        "target_source": xp.where(is_used, source[following], raw_length),
    }


def _middle_last(tokens, length, words, special, xp, random):
    """The row with its middle at the end, or as it is: ids and the raw column of each (L of a placed token), length."""
    column, raw_length = xp.arange(tokens.size + 3), tokens.size
    # Two different cuts after [CLS], so that no part of the row is lost and the middle is never empty.
    room = xp.maximum(length - 1, 1)
    begin = 1 + random.uniform_int(words[1], room)
    other = 1 + random.uniform_int(words[2], room)
    begin, end = xp.minimum(begin, other), xp.maximum(begin, other) + 1
    start = begin + 1 + length - end  # the column of the start token
    source = xp.where(
        column < begin, column, xp.where(column < start, end + column - begin - 1, begin + column - start - 1)
    )
    placed = (column == begin) | (column == start) | (column == length + 2)
    ids = xp.where(column == begin, special.mask, xp.where(column == start, special.start, special.end))
    moved = random.bernoulli(words[0], FILL_IN_THE_MIDDLE_RATE) & (length > 1)
    source = xp.where(moved, source, column)
    placed = placed & moved
    source = xp.where(placed, raw_length, source)
    row = xp.where(placed, ids, tokens[xp.clip(source, 0, raw_length - 1)])
    return row, source, xp.where(moved, length + 3, length)


def draw_masked(words: Any, can_mask: Any, *, xp: ModuleType, random: ModuleType) -> tuple[Any, Any]:
    """Which n of the m columns in `can_mask` [L] are masked, n uniform in 1 … m, and the weight m / n of each.

    `words` are uint32 [L + 1].
    """
    count = can_mask.sum()
    masked_count = 1 + random.uniform_int(words[0], xp.maximum(count, 1))
    # The order of the words, those of other columns last; equal words in the order of their columns.
    keys = xp.where(can_mask, words[1:] >> 1, np.uint32(2**31))
    rank = xp.argsort(xp.argsort(keys, stable=True), stable=True)
    return can_mask & (rank < masked_count), count / masked_count


def _masked_diffusion(tokens, length, words, num_targets, special, xp, random):
    """n of the row's m tokens masked, n uniform in 1 … m, with the weight m / n each."""
    column = xp.arange(tokens.size)
    can_mask = (column > 0) & (column < length)
    is_masked, weight = draw_masked(words, can_mask, xp=xp, random=random)
    order = xp.argsort(~is_masked, stable=True)  # masked columns first, from left to right
    target = xp.arange(num_targets)
    is_used = target < is_masked.sum()
    index = order[xp.clip(target, 0, tokens.size - 1)]
    return {
        "tokens": xp.where(column < length, xp.where(is_masked, special.mask, tokens), special.pad),
        "position_ids": xp.where(column < length, column, 0),
        "prefix_lengths": length,
        "target_index": xp.where(is_used, index, 0),
        "target_ids": xp.where(is_used, tokens[index], special.pad),
        "target_weights": xp.where(is_used, weight, 0.0),
        "target_source": xp.where(is_used, index, tokens.size),
    }
