"""Prints one corrupted example as the paper's figure 2 does: parts, positions, targets, and who sees whom."""

from collections.abc import Callable

import jax
import numpy as np

from glm_jax.corruption.config import OBJECTIVES
from glm_jax.model.batch import Batch
from glm_jax.model.visibility import visible


def describe(batch: Batch, tokenizer, row: int = 0, max_visibility: int = 48) -> str:
    """A readable account of example `row` of `batch`, or of all examples of that row where several share it.

    `tokenizer` turns ids into pieces: anything with `id_to_token(id) -> str`, or a function from id to str.
    The visibility matrix (a row per query, `#` = sees) is drawn when the example has `max_visibility` tokens at most.
    Raises ValueError for a row that the batch does not have.
    """
    tokens = np.asarray(batch.tokens)
    if not 0 <= row < len(tokens):
        raise ValueError(f"row {row} is not in a batch of {len(tokens)}: choose 0 … {len(tokens) - 1}")
    piece: Callable[[int], str] = getattr(tokenizer, "id_to_token", tokenizer)
    if len(slots := batch.unpack()) > 1:
        parts = [describe(slot, tokenizer, row, max_visibility) for slot in slots]
        return "\n\n".join(f"slot {number}, {part}" for number, part in enumerate(parts, 1))
    example = jax.tree.map(lambda value: np.asarray(value)[row], batch)
    prefix = int(example.prefix_lengths)
    live = example.target_weights > 0
    target_of = dict(zip(example.target_index[live].tolist(), example.target_ids[live].tolist(), strict=True))
    used = max([prefix - 1, *target_of]) + 1

    header = ("part", "column", "token", "position", "in blank", "target")
    table = [header] + [
        (
            "A" if i < prefix else "B",
            str(i),
            piece(int(example.tokens[i])),
            str(example.position_ids[i]),
            str(example.block_position_ids[i]),
            piece(target_of[i]) if i in target_of else "·",
        )
        for i in range(used)
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        f"objective {OBJECTIVES[int(example.objective)]}: Part A {prefix} tokens, Part B {used - prefix}, "
        f"{len(target_of)} targets, padding {tokens.shape[1] - used}"
    ]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)) for cells in table]
    if used <= max_visibility:
        lines.append("who sees whom (a row per query):")
        columns = np.arange(used)
        segment = (np.zeros(used, int) if example.segment_ids is None else example.segment_ids)[:used]
        sees = visible(np.int32(prefix), columns[:, None], columns[None], segment[:, None], segment[None])
        for query in range(used):
            seen = "".join(".#"[int(known)] for known in sees[query])
            lines.append(f"{'A' if query < prefix else 'B'}{query:4d} {seen[:prefix]}|{seen[prefix:]}")
    else:
        lines.append(
            f"who sees whom: query i sees columns 0 … max({prefix}, i + 1) - 1"
            + ("" if example.segment_ids is None else " of its own text")
        )
    return "\n".join(lines)
