"""Examples of a task as training rows: random access, of one shape, as `data.train_iterator` reads them."""

import bisect
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import numpy as np

from glm_jax.evaluation.classifier import classes_of, context_of
from glm_jax.evaluation.cloze import ClozeBatch, PackedRow, cloze_batch, pack
from glm_jax.model.batch import Batch
from glm_jax.model.config import check_lengths
from glm_jax.model.transformer import GLM
from glm_jax.tasks.encoding import join
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example
from glm_jax.tasks.infilling import InfillingTask
from glm_jax.tasks.seq2seq import Seq2SeqTask, fitted
from glm_jax.tasks.task import Task, encoder_of, named_example
from glm_jax.tokenizers.base import Tokenizer

logger = logging.getLogger(__name__)

_MULTIPLE = 16  # row lengths are rounded up to this


@flax.struct.dataclass
class TaskRows:
    """A batch. `cloze.labels` is the right candidate, -1 where all targets are to be written (a generation task)."""

    cloze: ClozeBatch
    index: Any  # uint32 [B], global example index


class Examples:
    """The rows of a task; each is encoded when it is asked for.

    Args:
      examples: with labels or targets; a tuple of them shares a row.
      encode: one of `examples` -> (row, label).
      pad: id.
      sizes: (tokens, targets, candidates) of every row; None takes the largest of the examples, all of which are
        encoded for that.
      segments: whether a row holds answers, or examples, that do not see each other.

    Raises TaskError for the first example that cannot be encoded, by its name.
    """

    def __init__(
        self,
        examples: Sequence[Example | tuple[Example, ...]],
        encode: Callable[[Any], tuple[PackedRow, int]],
        pad: int,
        sizes: tuple[int, int, int] | None = None,
        segments: bool = False,
    ):
        self.examples, self.pad, self._encode = list(examples), pad, encode
        if sizes is None:
            rows = (encode(example)[0] for example in self.examples)
            sizes = tuple(map(max, zip(*((len(r), len(r.targets), len(r.candidates)) for r in rows), strict=True)))
        self.set_form(sizes, segments)

    def set_form(self, sizes: tuple[int, int, int], segments: bool) -> None:
        """Gives every row these sizes, and segments or none: rows of several tasks share their form."""
        self.sizes, self.segments = (-(-sizes[0] // _MULTIPLE) * _MULTIPLE, *sizes[1:]), segments
        self.sequence_length = self.sizes[0]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        row, label = self._encode(self.examples[number])
        length, targets, candidates = self.sizes
        cloze = cloze_batch(
            [row], [label], pad=self.pad, length=length, num_targets=targets, num_candidates=candidates,
            segments=self.segments,
        )  # fmt: skip
        arrays = {**vars(cloze.batch), **{k: v for k, v in vars(cloze).items() if k not in ("batch", "prompt_columns")}}
        return {name: array[0] for name, array in arrays.items() if array is not None}

    def fingerprint(self) -> str:
        """A hash that tells other rows from these: of the examples, and of the first of them encoded."""
        groups = (e if isinstance(e, tuple) else (e,) for e in self.examples)
        content = [[(e.id, sorted(e.fields.items(), key=str), e.label) for e in group] for group in groups]
        first = [array.tolist() for array in self[0].values()]
        return hashlib.sha256(repr((content, self.sizes, first)).encode()).hexdigest()


def to_batch(arrays: Mapping[str, Any]) -> TaskRows:
    """What `data.train_iterator` gives, as a TaskRows."""
    arrays = dict(arrays)
    index = arrays.pop("index")
    names = ("candidate", "candidate_mask", "labels")
    own = {name: arrays.pop(name) for name in names}
    return TaskRows(ClozeBatch(batch=Batch(**arrays), **own), index)


def share_rows(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Which examples share a row: the longest first, each where it leaves the least room (best fit, decreasing).

    Raises TaskError for an example that is longer than a row.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[number] > row_length:
            raise TaskError(
                f"an example of {lengths[number]} tokens does not fit packed_length {row_length}: raise it, or set it "
                "to None"
            )
        at = bisect.bisect_left(room, (lengths[number], 0))
        if at == len(room):
            left, row = row_length, len(rows)
            rows.append([])
        else:
            left, row = room.pop(at)
        rows[row].append(number)
        bisect.insort(room, (left - lengths[number], row))
    return rows


def _packed(examples, encode, pad, packed_length):
    """Rows of `packed_length` tokens, each of several examples. All are encoded once for their lengths."""
    rows = [encode(example)[0] for example in examples]
    groups = share_rows([len(row) for row in rows], packed_length)
    logger.info("%d examples share %d rows of %d tokens, %.0f %% of which they fill", len(rows), len(groups),
                packed_length, 100 * sum(map(len, rows)) / packed_length / len(groups))  # fmt: skip
    targets = max(sum(len(rows[i].targets) for i in group) for group in groups)

    def encode_group(group):
        return _written(join([encode(example)[0].encoded for example in group])), -1

    groups = [tuple(examples[i] for i in group) for group in groups]
    return Examples(groups, encode_group, pad, (packed_length, targets, 1), segments=True)


def rows_of(
    task: Task | Seq2SeqTask | InfillingTask,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    model: GLM,
    head: str = "cloze",
    packed_length: int | None = None,
) -> Examples:
    """The training rows of a task.

    Args:
      head: "cloze" or "classifier".
      packed_length: tokens of a row that several examples share, of tasks whose answers are written; None: a row each.

    Raises TaskError for an example without label, that cannot be encoded, or that is longer than the model or
    `packed_length`; ValueError for a `packed_length` where candidates are scored.
    """
    pad = tokenizer.special.pad
    if packed_length is not None and (head == "classifier" or isinstance(task, Task)):
        raise ValueError(
            f"packed_length {packed_length}: examples of {task.name} are scored, not written, and have rows of their "
            "own; set it to None"
        )
    if head == "classifier":
        return Examples(examples, _classified(task, tokenizer, model), pad)
    if isinstance(task, Task):
        encode = _chosen(task, tokenizer, model)
        # Answers that stand beside each other must not see each other; one prediction for all needs no such rule.
        candidates = task.prompt.verbalizer is None or max(encode(examples[0])[0].encoded.segment_ids) > 1
        return Examples(examples, encode, pad, segments=candidates)
    if isinstance(task, InfillingTask):
        sizes = None

        def encode(example):
            encoded = named_example(example, task.encode, tokenizer, example)
            try:
                check_lengths(model.config, encoded.position_ids, encoded.block_position_ids)
            except ValueError as error:
                raise TaskError(f"example {example.id}: {error}") from error
            return _written(encoded), -1

    else:
        task = fitted(task, model.config)
        sizes = (task.source_length + task.target_length, task.target_length, 1)

        def encode(example):
            return _written(named_example(example, task.encode, tokenizer, example.fields)), -1

    if packed_length is not None:
        return _packed(examples, encode, pad, packed_length)
    return Examples(examples, encode, pad, sizes)


def _chosen(task, tokenizer, model):
    encoder = encoder_of(task, tokenizer, model.config.num_positions)

    def encode(example):
        cloze = named_example(example, encoder.encode, task.prompt, example.fields)
        rows = pack(cloze)
        if len(rows) > 1:
            raise TaskError(
                f"example {example.id}: candidates with texts of their own cannot be trained together; choose another "
                "pattern"
            )
        return rows[0], _label(task, example)

    return encode


def _classified(task, tokenizer, model):
    encoder, classes = encoder_of(task, tokenizer, model.config.num_positions), classes_of(task)

    def encode(example):
        row = PackedRow(context_of(task, example, encoder), tuple(range(classes)), ((0, 0, 0),))
        return row, _label(task, example)

    return encode


def _label(task, example):
    if example.label is None and task.prompt.target is None:
        raise TaskError(f"example {example.id} has no label: it cannot be trained on")
    return named_example(example, task.prompt.label_index, example.label, example.fields)


def _written(encoded):
    columns = [column for column, weight in enumerate(encoded.target_weights) if weight]
    return PackedRow(encoded, (0,), tuple((column, encoded.target_ids[column], 0) for column in columns))
