"""From encoded rows to arrays: the model's `Batch`, and which candidate each target belongs to."""

from collections.abc import Iterator, Sequence

import flax.struct
import numpy as np

from glm_jax.model.batch import Batch, Leaf
from glm_jax.tasks.encoding import Encoded
from glm_jax.tasks.errors import TaskError


@flax.struct.dataclass
class TaskBatch(Batch):
    """A batch of a task's rows, each with at most C candidates."""

    target_candidate: Leaf = None  # int32 [B K], the candidate of the row that a target belongs to
    candidate_mask: Leaf = None  # float32 [B C], 1 where the row has such a candidate
    labels: Leaf = None  # int32 [B], the right candidate; -1 where it is not known, or all targets are to be written
    prompt_columns: Leaf = None  # int32 [B P], the columns of soft prompts; None without them
    index: Leaf = None  # uint32 [B], the global example index; None outside training


def collate(
    rows: Sequence[Encoded],
    *,
    pad: int,
    length: int | None = None,
    num_targets: int | None = None,
    num_candidates: int | None = None,
    segments: bool = False,
) -> TaskBatch:
    """NumPy arrays of rows.

    Args:
      rows: at least one.
      pad: id of padding tokens.
      length, num_targets, num_candidates: T, K and C; by default what the rows need, at least 1.
      segments: whether the batch has `segment_ids`. Rows whose answers, or examples, must not see each other need it.

    Raises:
      TaskError: no rows; a row that does not fit the sizes; rows with unequal numbers of soft prompt columns.
    """
    if not rows:
        raise TaskError("there are no rows to make a batch of")
    need = [max(map(size, rows)) for size in (len, lambda row: len(row.target_ids), lambda row: len(row.candidates))]
    length, num_targets, num_candidates = (
        max(1, needed) if given is None else given
        for needed, given in zip(need, (length, num_targets, num_candidates), strict=True)
    )
    if need[0] > length:
        raise TaskError(
            f"an example of {need[0]} tokens does not fit rows of {length}: raise the length, or shorten it"
        )
    if need[1] > num_targets:
        raise TaskError(f"an example with {need[1]} targets does not fit {num_targets}: raise num_targets")
    if need[2] > num_candidates:
        raise TaskError(f"an example with {need[2]} candidates does not fit {num_candidates}: raise num_candidates")
    if len({len(row.prompt_columns) for row in rows}) > 1:
        raise TaskError("all rows of a batch need the same number of soft prompt tokens")

    def array(name, width, fill=0, dtype=np.int32):
        result = np.full((len(rows), width), fill, dtype)
        for line, row in zip(result, rows, strict=True):
            values = getattr(row, name)
            line[: len(values)] = values
        return result

    def mask(name, width):
        counts = np.array([len(getattr(row, name)) for row in rows])
        return (np.arange(width)[None] < counts[:, None]).astype(np.float32)

    prompt = array("prompt_columns", len(rows[0].prompt_columns))
    return TaskBatch(
        tokens=array("tokens", length, pad),
        position_ids=array("position_ids", length),
        block_position_ids=array("block_position_ids", length),
        prefix_lengths=np.array([row.prefix_length for row in rows], np.int32),
        target_index=array("target_index", num_targets),
        target_ids=array("target_ids", num_targets),
        target_weights=mask("target_ids", num_targets),
        target_source=np.zeros((len(rows), num_targets), np.int32),
        objective=np.zeros(len(rows), np.int32),
        segment_ids=array("segment_ids", length) if segments else None,
        target_candidate=array("target_candidate", num_targets),
        candidate_mask=mask("candidates", num_candidates),
        labels=np.array([row.label for row in rows], np.int32),
        prompt_columns=prompt if prompt.size else None,
    )


def batches_by_length(
    rows: Sequence[Encoded], batch_size: int, *, pad: int, target_multiple: int = 8, segments: bool = False
) -> Iterator[tuple[list[int], TaskBatch]]:
    """Batches of rows of similar length, for evaluation.

    Every batch has `batch_size` rows, the last of which are repetitions where rows run out. T is rounded up to a
    multiple of 64, C to one of 8, K to 8 or a multiple of `target_multiple`, so that few shapes are compiled.

    Args:
      pad, segments: see `collate`.

    Yields:
      The numbers, in `rows`, of the batch's rows without repetitions, and the batch.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        chosen = [rows[i] for i in numbers]
        num_targets = max(len(row.target_ids) for row in chosen)
        yield (
            numbers,
            collate(
                [*chosen, *[chosen[-1]] * (batch_size - len(chosen))],
                pad=pad,
                length=_round_up(max(map(len, chosen)), 64),
                num_targets=_round_up(num_targets, target_multiple if num_targets > 8 else 8),
                num_candidates=_round_up(max(len(row.candidates) for row in chosen), 8),
                segments=segments,
            ),
        )


def _round_up(number, multiple):
    return max(1, -(-number // multiple)) * multiple
