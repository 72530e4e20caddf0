"""Reads the original's corruption records and what each implies: the raw row, its spans and their order."""

import dataclasses
import itertools

import numpy as np

from glm_jax.tokenizers.special import SpecialTokens
from tests.helpers.paths import GOLDEN

SPECIAL = SpecialTokens(pad=0, eos=0, cls=1, mask=2, sentence_mask=8, generation_mask=7, start=5, end=6, block_mask=9)
SENTENCE_END, SENTINELS = 10, 1000


@dataclasses.dataclass
class Record:
    """One row of one batch of the original, cut to its own length."""

    text: np.ndarray
    target: np.ndarray
    loss_mask: np.ndarray
    position: np.ndarray
    block_position: np.ndarray
    prefix: int
    mode: int
    raw: np.ndarray  # the row before corruption
    raw_loss_mask: np.ndarray | None
    starts: np.ndarray  # spans in the order of Part B
    lengths: np.ndarray
    closed: bool


def field(archive, name):
    """The ragged field `name`: one array per record."""
    flat, offset = archive[f"{name}__flat"], 0
    for shape in archive[f"{name}__shape"]:
        shape = tuple(int(n) for n in shape)
        while len(shape) > 1 and shape[-1] == 0:
            shape = shape[:-1]
        size = int(np.prod(shape))
        yield flat[offset : offset + size].reshape(shape)
        offset += size


def _is_mask(ids):
    return np.isin(ids, (SPECIAL.mask, SPECIAL.sentence_mask, SPECIAL.generation_mask)) | (
        (ids >= SENTINELS) & (ids % 2 == 0)
    )


def _is_start(ids):
    return (ids == SPECIAL.start) | ((ids >= SENTINELS) & (ids % 2 == 1))


def load(name: str) -> list[Record]:
    """Every row of `corruption_{name}.npz`."""
    archive = np.load(GOLDEN / f"corruption_{name}.npz")
    names = ("text", "target", "loss_mask", "position_id", "sep", "mode", "in_text", "in_loss_mask", "in_len")
    records = []
    for text, target, loss, position, seps, mode, inputs, input_loss, lengths in zip(
        *(field(archive, n) for n in names), strict=True
    ):
        known = {tuple(row[:n]): row_loss[:n] for row, row_loss, n in zip(inputs, input_loss, lengths, strict=True)}
        for i, prefix in enumerate(seps):
            records.append(_record(text[i], target[i], loss[i], position[i], int(prefix), int(mode.ravel()[0]), known))
    return records


def _record(text, target, loss, position, prefix, mode, known):
    if position.ndim == 1:  # masked language model: a span is a run of predicted positions
        edges = np.diff(np.concatenate([[0], loss, [0]]))
        starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        raw = target[:prefix]
        return Record(
            text[:prefix], raw, loss[:prefix], position[:prefix], np.zeros(prefix, int), prefix, mode, raw,
            known.get(tuple(raw)), starts, stops - starts, False,
        )  # fmt: skip
    used = prefix + _used(text, target, loss, prefix)
    text, target, loss, position = text[:used], target[:used], loss[:used], position[:, :used]
    masks = [int(m) for m in np.flatnonzero(_is_mask(target[:prefix]))]
    begins = [*(prefix + np.flatnonzero(_is_start(text[prefix:]))), used]
    closed = target[-1] == SPECIAL.end
    blocks = [target[a : b - closed] for a, b in itertools.pairwise(begins)]
    if (target[:prefix] >= SENTINELS).any():  # blocks are numbered, not positioned
        numbers = [0 if target[m] < SENTINELS else 1 + (target[m] - SENTINELS) // 2 for m in masks]
        block_of_mask = dict(zip(masks, numbers, strict=True))
    else:
        shift = position[0, 0]
        block_of_mask = {int(position[0, b] - shift): i for i, b in enumerate(begins[:-1])}
    raw, starts = [], np.zeros(len(blocks), int)
    for column in range(prefix):
        if column in block_of_mask:
            starts[block_of_mask[column]] = len(raw)
            raw.extend(blocks[block_of_mask[column]])
        else:
            raw.append(target[column])
    raw = np.array(raw)
    return Record(
        text, target, loss, position[0], position[1], prefix, mode, raw, known.get(tuple(raw)), starts,
        np.array([len(b) for b in blocks], int), bool(closed),
    )  # fmt: skip


def _used(text, target, loss, prefix):
    """Length of Part B: up to the last end token, or to the last predicted token where there is none."""
    ends = np.flatnonzero(target[prefix:] == SPECIAL.end)
    predicted = ends if ends.size else np.flatnonzero(loss[prefix:] > 0)
    return int(predicted[-1]) + 1 if predicted.size else 0
