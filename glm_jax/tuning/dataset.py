"""A task's examples as training rows of one shape, with random access, as `data.train_iterator` reads them."""

import bisect
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from glm_jax.evaluation.classifier import encode_for_classifier, num_classes
from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import GLM
from glm_jax.tasks.batch import TaskBatch, collate
from glm_jax.tasks.encoding import Encoded, check_row, in_place, pack
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example, error_context
from glm_jax.tasks.seq2seq import Seq2SeqTask, fitted
from glm_jax.tasks.task import AnyTask, Task
from glm_jax.tokenizers.base import Tokenizer

logger = logging.getLogger(__name__)

_LENGTH_MULTIPLE = 16  # row lengths are rounded up to this


class TaskDataset:
    """The rows of a task. Each is encoded when it is read.

    Args:
      examples: with labels or targets; a tuple of them shares a row.
      encode: one of `examples` -> its row.
      pad: id of padding tokens.
      sizes: numbers of tokens, targets and candidates in every row; None: the largest among the examples, which are all
        encoded to find them.
      segments: whether rows need `segment_ids`; see `collate`.

    Raises:
      TaskError: an example that cannot be encoded. The message names it.
    """

    def __init__(
        self,
        examples: Sequence[Example | tuple[Example, ...]],
        encode: Callable[[Any], Encoded],
        pad: int,
        sizes: tuple[int, int, int] | None = None,
        segments: bool = False,
    ):
        self.examples, self.pad, self._encode = list(examples), pad, encode
        if sizes is None:
            rows = map(encode, self.examples)
            sizes = tuple(map(max, zip(*((len(r), len(r.target_ids), len(r.candidates)) for r in rows), strict=True)))
        self.set_shape(sizes, segments)

    def set_shape(self, sizes: tuple[int, int, int], segments: bool) -> None:
        """Sets the sizes of every row, and whether it has segments. Datasets in one mixture share their shape."""
        self.sizes = (-(-sizes[0] // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE, *sizes[1:])
        self.segments = segments
        self.sequence_length = self.sizes[0]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        length, num_targets, num_candidates = self.sizes
        batch = collate(
            [self._encode(self.examples[number])], pad=self.pad, length=length, num_targets=num_targets,
            num_candidates=num_candidates, segments=self.segments,
        )  # fmt: skip
        arrays = {name: array for name, array in vars(batch).items() if array is not None}
        return {name: array[0] for name, array in arrays.items()}

    def fingerprint(self) -> str:
        """A hash of the examples and of the first row, different for other datasets."""
        groups = (e if isinstance(e, tuple) else (e,) for e in self.examples)
        content = [[(e.id, sorted(e.fields.items(), key=str), e.label) for e in group] for group in groups]
        first = [array.tolist() for array in self[0].values()]
        return hashlib.sha256(repr((content, self.sizes, first)).encode()).hexdigest()


def to_batch(arrays: Mapping[str, Any]) -> TaskBatch:
    """The rows that `data.train_iterator` gives, as a batch."""
    return TaskBatch(**arrays)


def make_dataset(
    task: AnyTask,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    model: GLM,
    head: str = "cloze",
    packed_length: int | None = None,
    pool: str = "cls",
    prompt_tokens: int = 0,
) -> TaskDataset:
    """The training rows of a task.

    Args:
      head: "cloze" or "classifier".
      pool: the token that a classifier reads.
      prompt_tokens: of a soft prompt inside the template.
      packed_length: number of tokens of a row that several examples share, for tasks whose answers are written; None:
        every example has a row of its own.

    Raises:
      TaskError: an example without label, that cannot be encoded, or that is longer than the model or `packed_length`.
      ValueError: a `packed_length` for a task whose candidates are compared.
    """
    pad = tokenizer.special.pad
    if packed_length is not None and (head == "classifier" or isinstance(task, Task)):
        raise ValueError(
            f"packed_length {packed_length}: examples of {task.name} are scored, not written, and have rows of their "
            "own; set it to None"
        )
    if packed_length is not None and model.config.layout != "glm":
        raise ValueError(f"packed_length {packed_length}: rows of a {model.config.layout} model hold one example each")
    if head == "classifier" and model.config.layout == "causal" and pool == "cls":
        raise ValueError(
            "pool 'cls': the first token of a causal model has seen nothing else; take 'pad', the last of the text, or "
            "'start'"
        )
    if head == "classifier" or isinstance(task, Task):
        encode = _labelled_encoder(task, tokenizer, model.config, head, pool, prompt_tokens)
        # Candidates with answers of their own must not see each other; one prediction for all needs no segments.
        segments = head != "classifier" and (
            task.template.verbalizer is None or max(encode(examples[0]).segment_ids) > 1
        )
        return TaskDataset(examples, encode, pad, segments=segments)
    sizes = None
    if isinstance(task, Seq2SeqTask):
        task = fitted(task, model.config)
        sizes = (task.source_length + task.target_length, task.target_length, 1)
    encode = _answer_encoder(task, tokenizer, model.config)
    if packed_length is not None:
        return _packed_dataset(examples, encode, pad, packed_length)
    return TaskDataset(examples, encode, pad, sizes)


def _labelled_encoder(
    task: AnyTask, tokenizer: Tokenizer, config: GLMConfig, head: str, pool: str, prompt_tokens: int
) -> Callable[..., Encoded]:
    """Example -> a row of its candidates, or of its classes, and its label."""
    if head == "classifier":
        num_classes(task)  # raises for a task without classes
    encoder = task.encoder(tokenizer, config.num_positions, prompt_tokens=prompt_tokens)

    def encode(example):
        if head == "classifier":
            row = encode_for_classifier(task, example, encoder, pool)
        else:
            with error_context(example):
                row, *others = encoder.encode(task.template, example.fields)
                if others:
                    raise TaskError(
                        "candidates with texts of their own cannot be trained together; choose another pattern"
                    )
                if config.layout == "masked":
                    (row,) = in_place([row], tokenizer.special.mask, tokenizer.special.end)
        label = task.label_index(example)
        if label is None:
            raise TaskError(f"example {example.id} has no label: it cannot be trained on")
        return dataclasses.replace(row, label=label)

    return encode


def _answer_encoder(task: AnyTask, tokenizer: Tokenizer, config: GLMConfig) -> Callable[[Example], Encoded]:
    """Example -> a row with its answers; of a masked language model, with a mask for each token that one may have."""
    masks = task.target_length if config.layout == "masked" and isinstance(task, Seq2SeqTask) else None

    def encode(example):
        with error_context(example):
            encoded = task.encode(tokenizer, example)
            if config.layout == "masked":
                (encoded,) = in_place([encoded], tokenizer.special.mask, tokenizer.special.end, masks)
            elif config.layout != "glm" and len(encoded.blanks) > 1:
                raise TaskError(
                    f"{len(encoded.blanks)} blanks in one text, but a model of the layout {config.layout!r} fills one"
                )
            try:
                check_row(encoded, config)
            except ValueError as error:
                raise TaskError(str(error)) from error
            return encoded

    return encode


def _packed_dataset(examples, encode, pad, packed_length):
    """Rows of `packed_length` tokens, each of several examples. All are encoded once to know their lengths."""
    rows = [encode(example) for example in examples]
    groups = best_fit([len(row) for row in rows], packed_length)
    logger.info("%d examples share %d rows of %d tokens, %.0f %% of which they fill", len(rows), len(groups),
                packed_length, 100 * sum(map(len, rows)) / packed_length / len(groups))  # fmt: skip
    num_targets = max(sum(len(rows[i].target_ids) for i in group) for group in groups)

    def encode_group(group):
        return pack([encode(example) for example in group])

    groups = [tuple(examples[i] for i in group) for group in groups]
    return TaskDataset(groups, encode_group, pad, (packed_length, num_targets, 1), segments=True)


def best_fit(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Which examples share a row: the longest first, each in the row where it leaves the least room.

    Returns:
      The numbers of the examples of each row.

    Raises:
      TaskError: an example that is longer than a row.
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
