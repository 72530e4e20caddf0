"""How Megatron-style model parallelism cuts the original's tensors (Shoeybi et al. 2019, arXiv 1909.08053).

By rows (outputs, vocabulary), by columns (inputs), or the rows of each of Q, K and V; everything else is whole in
every shard. The rules of the original's change_mp.py, except that soft prompts and classification heads are whole.
"""

from collections.abc import Sequence

import numpy as np

ROWS, COLUMNS, THIRDS = "rows", "columns", "thirds"


def cut(array: np.ndarray, split: str | None, index: int, count: int) -> np.ndarray:
    """What shard `index` of `count` holds of an array."""
    if split is None or count == 1:
        return array
    if split == THIRDS:
        return np.concatenate([np.split(third, count)[index] for third in np.split(array, 3)])
    return np.ascontiguousarray(np.split(array, count, axis=0 if split == ROWS else 1)[index])


def join(parts: Sequence[np.ndarray], split: str) -> np.ndarray:
    """The inverse of `cut`, from all shards in order."""
    if len(parts) == 1:
        return parts[0]
    if split == THIRDS:
        return np.concatenate([np.split(part, 3)[i] for i in range(3) for part in parts])
    return np.concatenate(parts, axis=0 if split == ROWS else 1)


def cut_shape(shape: tuple[int, ...], split: str | None, count: int, key: str) -> tuple[int, ...]:
    """Shape of every shard. Raises ValueError when the axis cannot be cut into `count` equal parts."""
    if split is None:
        return shape
    axis, blocks = (1, 1) if split == COLUMNS else (0, 3 if split == THIRDS else 1)
    if shape[axis] % (blocks * count):
        raise ValueError(f"{key} {shape} cannot be cut into {count} equal parts along axis {axis}; take a divisor")
    return tuple(size // count if i == axis else size for i, size in enumerate(shape))


def joined_shape(shape: tuple[int, ...], split: str | None, count: int) -> tuple[int, ...]:
    """Shape of the whole, from that of a shard."""
    if split is None:
        return shape
    return tuple(size * count if i == (split == COLUMNS) else size for i, size in enumerate(shape))


def split_of(key: str) -> str | None:
    """How model parallelism cuts the tensor `key`; heads and soft prompts are whole in every shard."""
    name = key.rsplit(".", 2)
    rules = {
        "word_embeddings": (ROWS, None),
        "query_key_value": (THIRDS, THIRDS),
        "dense_h_to_4h": (ROWS, ROWS),
        "dense_4h_to_h": (COLUMNS, None),
    }
    if ".attention.dense." in key:
        return COLUMNS if key.endswith(".weight") else None
    if len(name) < 2 or name[-2] not in rules:
        return None
    return rules[name[-2]][0 if name[-1] == "weight" else 1]
