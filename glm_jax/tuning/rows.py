"""Examples of a task as training rows: random access, of one shape, as `data.train_iterator` reads them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import numpy as np

from glm_jax.batch import Batch
from glm_jax.model import GLM, check_lengths
from glm_jax.tasks.classifier import classes_of, context_of
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example
from glm_jax.tasks.infilling import InfillingTask
from glm_jax.tasks.scoring import ClozeBatch, PackedRow, cloze_batch, pack
from glm_jax.tasks.seq2seq import Seq2SeqTask
from glm_jax.tasks.task import Task, encoder_of, named_example
from glm_jax.tokenizers.base import Tokenizer

_MULTIPLE = 16  # row lengths are rounded up to this


@flax.struct.dataclass
class TaskRows:
    """A batch. `cloze.labels` is the right candidate, -1 where all targets are to be written (a generation task)."""

    cloze: ClozeBatch
    index: Any  # uint32 [B], global example index


class Examples:
    """The rows of a task; each is encoded when it is asked for.

    Args:
      task: what the examples belong to.
      examples: with labels or targets.
      encode: example -> (row, label).
      pad: id.
      sizes: (tokens, targets, candidates) of every row; None takes the largest of the examples, all of which are
        encoded for that.

    Raises TaskError for the first example that cannot be encoded, by its name.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        encode: Callable[[Example], tuple[PackedRow, int]],
        pad: int,
        sizes: tuple[int, int, int] | None = None,
    ):
        self.examples, self.pad, self._encode = list(examples), pad, encode
        if sizes is None:
            rows = (encode(example)[0] for example in self.examples)
            sizes = tuple(map(max, zip(*((len(r), len(r.targets), len(r.candidates)) for r in rows), strict=True)))
        self.set_sizes(sizes)

    def set_sizes(self, sizes: tuple[int, int, int]) -> None:
        """Gives every row these sizes: rows of several tasks share theirs."""
        self.sizes = (-(-sizes[0] // _MULTIPLE) * _MULTIPLE, *sizes[1:])
        self.sequence_length = self.sizes[0]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        row, label = self._encode(self.examples[number])
        length, targets, candidates = self.sizes
        cloze = cloze_batch([row], [label], pad=self.pad, length=length, num_targets=targets, num_candidates=candidates)
        arrays = {**vars(cloze.batch), **{k: v for k, v in vars(cloze).items() if k not in ("batch", "prompt_columns")}}
        return {name: array[0] for name, array in arrays.items() if array is not None}

    def fingerprint(self) -> str:
        """A hash that tells other rows from these: of the examples, and of the first of them encoded."""
        content = [(e.id, sorted(e.fields.items(), key=str), e.label) for e in self.examples]
        first = [array.tolist() for array in self[0].values()]
        return hashlib.sha256(repr((content, self.sizes, first)).encode()).hexdigest()


def to_batch(arrays: Mapping[str, Any]) -> TaskRows:
    """What `data.train_iterator` gives, as a TaskRows."""
    arrays = dict(arrays)
    index = arrays.pop("index")
    names = ("answer_ids", "candidate", "candidate_mask", "labels")
    own = {name: arrays.pop(name) for name in names}
    return TaskRows(ClozeBatch(batch=Batch(**arrays), **own), index)


def rows_of(
    task: Task | Seq2SeqTask | InfillingTask,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    model: GLM,
    head: str = "cloze",
) -> Examples:
    """The training rows of a task. `head` is "cloze" or "classifier".

    Raises TaskError for an example without label, or that cannot be encoded; ValueError for lengths beyond the model.
    """
    pad = tokenizer.special.pad
    if head == "classifier":
        return Examples(examples, _classified(task, tokenizer, model), pad)
    if isinstance(task, Task):
        return Examples(examples, _chosen(task, tokenizer, model), pad)
    if isinstance(task, InfillingTask):
        return Examples(examples, lambda e: (_written(task.encode(tokenizer, e)), -1), pad)
    check_lengths(model.config, task.source_length - 1, task.target_length)
    sizes = (task.source_length + task.target_length, task.target_length, 1)

    def encode(example):
        return _written(named_example(example, task.encode, tokenizer, example.fields)), -1

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
