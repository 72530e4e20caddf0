"""Prints one corrupted example as figure 2 of the paper does: parts, positions, targets and attention mask."""

from collections.abc import Callable

import jax
import numpy as np

from glm_jax.corruption.config import OBJECTIVES, CorruptionConfig
from glm_jax.corruption.corrupt_numpy import corrupt_numpy
from glm_jax.model.batch import Batch
from glm_jax.model.visibility import visible
from glm_jax.tokenizers.base import Tokenizer


def describe_text(
    text: str,
    tokenizer: Tokenizer,
    *,
    config: CorruptionConfig | None = None,
    seed: int = 0,
    index: int = 0,
    max_mask_size: int = 48,
) -> str:
    """Tokenizes and corrupts `text`, and describes the example (see `describe`).

    The example is number `index` of a run with `seed`, as one document in a row of its own; with `pack_objectives`,
    one example per slot. `config` defaults to `CorruptionConfig()`, the paper's blank infilling.
    """
    config = config or CorruptionConfig()
    special, slots = tokenizer.special, len(config.slots())
    ids = [special.cls, *tokenizer.encode(text), special.eos]
    row = np.array(ids + [special.pad] * (4 - len(ids)), np.int32)  # no row is shorter than 4
    batch = corrupt_numpy(
        seed,
        np.tile(row, (slots, 1)),
        np.full(slots, len(ids)),
        index * slots + np.arange(slots),
        tokenizer.sentence_ends(),
        config=config,
        special=special,
    )
    return describe(batch, tokenizer, max_mask_size=max_mask_size)


def describe(batch: Batch, tokenizer, row: int = 0, max_mask_size: int = 48) -> str:
    """A readable description of example `row` of `batch`, or of all examples of that row where several share it.

    Args:
      batch: what `corrupt` returns.
      tokenizer: turns ids into token strings: anything with `id_to_token(id) -> str`, or a function from id to str.
      row: which row of the batch.
      max_mask_size: the attention mask is drawn if the example has at most this many tokens. It has a line per query,
        and `#` where the query attends to the key.

    Raises:
      ValueError: for a row that the batch does not have.
    """
    tokens = np.asarray(batch.tokens)
    if not 0 <= row < len(tokens):
        raise ValueError(f"row {row} is not in a batch of {len(tokens)}: choose 0 … {len(tokens) - 1}")
    token_string: Callable[[int], str] = getattr(tokenizer, "id_to_token", tokenizer)
    if len(slots := batch.unpack()) > 1:
        parts = [describe(slot, tokenizer, row, max_mask_size) for slot in slots]
        return "\n\n".join(f"slot {number}, {part}" for number, part in enumerate(parts, 1))
    example = jax.tree.map(lambda value: np.asarray(value)[row], batch)
    prefix = int(example.prefix_lengths)
    live = example.target_weights > 0
    target_of = dict(zip(example.target_index[live].tolist(), example.target_ids[live].tolist(), strict=True))
    used = max([prefix - 1, *target_of]) + 1
    is_other_model = target_of and not example.block_position_ids.any()  # one of `baselines`
    name = "example" if is_other_model else f"objective {OBJECTIVES[int(example.objective)]}"
    lines = [
        f"{name}: Part A {prefix} tokens, Part B {used - prefix}, "
        f"{len(target_of)} targets, padding {tokens.shape[1] - used}"
    ]
    lines += _token_table(example, prefix, used, target_of, token_string)
    lines += _attention_mask(example, prefix, used, max_mask_size)
    return "\n".join(lines)


def _token_table(example, prefix, used, target_of, token_string):
    table = [("part", "column", "token", "position", "block position", "target")]
    for i in range(used):
        target = token_string(target_of[i]) if i in target_of else "·"
        position, block_position = str(example.position_ids[i]), str(example.block_position_ids[i])
        part = "A" if i < prefix else "B"
        table.append((part, str(i), token_string(int(example.tokens[i])), position, block_position, target))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)) for cells in table]


def _attention_mask(example, prefix, used, max_mask_size):
    if used > max_mask_size:
        rule = f"attention mask: query i attends to columns 0 … max({prefix}, i + 1) - 1"
        return [rule + ("" if example.segment_ids is None else " of its own subsequence")]
    columns = np.arange(used)
    segment = (np.zeros(used, int) if example.segment_ids is None else example.segment_ids)[:used]
    mask = visible(np.int32(prefix), columns[:, None], columns[None], segment[:, None], segment[None])
    lines = ["attention mask (a line per query):"]
    for query in range(used):
        keys = "".join(".#"[int(attends)] for attends in mask[query])
        lines.append(f"{'A' if query < prefix else 'B'}{query:4d} {keys[:prefix]}|{keys[prefix:]}")
    return lines
