"""The structure that passes from the corruption to the model and the loss."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax.numpy as jnp
import numpy as np

from glm_jax.model.checks import check_array, check_model_inputs
from glm_jax.model.config import GLMConfig, check_lengths

Leaf = Any  # a pytree is mapped over, so its leaves are not always arrays: shapes stand beside each field


class Slot(NamedTuple):
    """The part of a row that holds one example. All of it is static."""

    columns: int  # of the row's T
    targets: int  # of the row's K
    longest_prefix: int | None = None  # no Part A is longer; None: it may fill the slot


def slot_slices(slots: Sequence[Slot]) -> Iterator[tuple[slice, slice]]:
    """For each slot of a row, its columns of T and its targets of K."""
    column = target = 0
    for slot in slots:
        yield slice(column, column + slot.columns), slice(target, target + slot.targets)
        column, target = column + slot.columns, target + slot.targets


@flax.struct.dataclass
class Batch:
    """Examples ready for the model: Part A, then Part B, then padding (paper, section 2.1).

    Lengths are explicit: padding is what follows Part A and the used targets, never a token id.
    Only Part B is predicted, so targets are gathered to a static width K; unused targets have weight 0 and index 0.

    With P > 1 `slots` a row holds P examples, invisible to each other: T and K are sums over the slots,
    `prefix_lengths` and `objective` are [B P], and an unused target points to the first column of its slot.
    """

    tokens: Leaf  # int32 [B T]
    position_ids: Leaf  # int32 [B T], the position in Part A of the token or of its blank
    block_position_ids: Leaf  # int32 [B T], 0 in Part A; 1, 2, … inside a blank
    prefix_lengths: Leaf  # int32 [B], length of Part A
    target_index: Leaf  # int32 [B K], the column of `tokens` whose output predicts the target
    target_ids: Leaf  # int32 [B K]
    target_weights: Leaf  # float32 [B K]
    target_source: Leaf  # int32 [B K], the target's position in the raw row; L for an end token
    objective: Leaf  # int32 [B], index into `corruption.OBJECTIVES`
    # int32 [B T], which of several texts a token belongs to (from 1; 0: to all of them); None: one text a row
    segment_ids: Leaf = None
    slots: tuple[Slot, ...] | None = flax.struct.field(pytree_node=False, default=None)  # None: one example a row

    def model_inputs(self) -> dict[str, Any]:
        """The arguments of `GLM`: `model.apply({"params": params}, **batch.model_inputs())`."""
        return {
            "tokens": self.tokens,
            "position_ids": self.position_ids,
            "block_position_ids": self.block_position_ids,
            "prefix_lengths": self.prefix_lengths,
            "target_index": self.target_index,
            "segment_ids": self.segment_ids,
            "slots": self.slots,
        }

    def target_objective(self) -> Leaf:
        """The objective of each target, int32 [B K]."""
        each = [jnp.broadcast_to(part.objective[:, None], part.target_ids.shape) for part in self.unpack()]
        return jnp.concatenate(each, axis=1)

    def unpack(self) -> list["Batch"]:
        """A batch for each slot: the inverse of `pack_objectives`."""
        if self.slots is None or len(self.slots) == 1:
            return [self]
        return [
            Batch(
                tokens=self.tokens[:, columns],
                position_ids=self.position_ids[:, columns],
                block_position_ids=self.block_position_ids[:, columns],
                prefix_lengths=self.prefix_lengths[:, number],
                target_index=self.target_index[:, targets] - columns.start,
                target_ids=self.target_ids[:, targets],
                target_weights=self.target_weights[:, targets],
                target_source=self.target_source[:, targets],
                objective=self.objective[:, number],
                segment_ids=None if self.segment_ids is None else self.segment_ids[:, columns],
                slots=(self.slots[number],),
            )
            for number, (columns, targets) in enumerate(slot_slices(self.slots))
        ]


def pack_objectives(parts: Sequence[Batch]) -> Batch:
    """One batch whose rows hold a row of each part; every part has one slot."""
    slots = tuple(slot for part in parts for slot in part.slots)
    xp = parts[0].tokens.__array_namespace__()  # parts of NumPy arrays stay on the host

    def joined(name):
        return xp.concatenate([getattr(part, name) for part in parts], axis=1)

    return Batch(
        tokens=joined("tokens"),
        position_ids=joined("position_ids"),
        block_position_ids=joined("block_position_ids"),
        prefix_lengths=xp.stack([part.prefix_lengths for part in parts], axis=1),
        target_index=xp.concatenate(
            [part.target_index + columns.start for part, (columns, _) in zip(parts, slot_slices(slots), strict=True)],
            axis=1,
        ),
        target_ids=joined("target_ids"),
        target_weights=joined("target_weights"),
        target_source=joined("target_source"),
        objective=xp.stack([part.objective for part in parts], axis=1),
        segment_ids=None if parts[0].segment_ids is None else joined("segment_ids"),
        slots=slots,
    )


_REQUIRED = (
    "tokens", "position_ids", "block_position_ids", "prefix_lengths", "target_index", "target_ids", "target_weights",
    "target_source", "objective",
)  # fmt: skip


def check_batch(batch: Batch, config: GLMConfig) -> None:
    """Checks shapes, dtypes and values of a batch against a model, outside of jit, for instance of a first batch.

    Raises:
      ValueError: names the field and its first wrong value.
    """
    if not isinstance(batch, Batch):
        raise ValueError(f"check_batch takes a Batch, not {type(batch).__name__}")
    if not isinstance(config, GLMConfig):
        raise ValueError(f"check_batch takes the model's GLMConfig, not {type(config).__name__}: pass model.config")
    if missing := [name for name in _REQUIRED if getattr(batch, name) is None]:
        raise ValueError(f"{missing[0]} is None, but every batch has it")
    batch = batch.replace(
        **{name: np.asarray(a) for name, a in vars(batch).items() if name != "slots" and a is not None}
    )
    check_model_inputs(config, **batch.model_inputs())
    shape = batch.target_index.shape
    check_array("target_ids", batch.target_ids, "B K", shape, jnp.integer)
    check_array("target_weights", batch.target_weights, "B K", shape, jnp.floating)
    check_array("target_source", batch.target_source, "B K", shape, jnp.integer)
    check_array("objective", batch.objective, "B", batch.prefix_lengths.shape, jnp.integer)
    _check_range("tokens", batch.tokens, 0, config.vocab_size - 1, "the vocabulary")
    _check_range("target_ids", batch.target_ids, 0, config.vocab_size - 1, "the vocabulary")
    check_lengths(config, batch.position_ids, batch.block_position_ids)
    slots = batch.slots or (Slot(batch.tokens.shape[1], shape[1]),)
    prefix_lengths = batch.prefix_lengths.reshape(-1, len(slots))
    for number, (columns, targets) in enumerate(slot_slices(slots)):
        limit = slots[number].columns if slots[number].longest_prefix is None else slots[number].longest_prefix
        _check_range("prefix_lengths", prefix_lengths[:, number], 0, limit, "the row")
        index = batch.target_index[:, targets]
        _check_range("target_index", index, columns.start, columns.stop - 1, "the columns of its row")
    if batch.segment_ids is not None:
        _check_range("segment_ids", batch.segment_ids, 0, np.inf, "0 (every text's) and up")
    _check_range("target_weights", batch.target_weights, 0.0, np.finfo(np.float32).max, "finite weights of 0 or more")


def _check_range(name, array, low, high, what):
    wrong = ~((array >= low) & (array <= high))  # also NaN
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        values = f" ({low} to {high})" if isinstance(high, int) else ""
        raise ValueError(f"{name}{list(place)} is {array[place]}, outside {what}{values}")
