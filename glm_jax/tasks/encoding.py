"""From Part A and its answers to what the model reads (paper, section 2.1).

`encode_example` is the one place where answers are laid out behind a context. The original has three builders for this
(tasks/data_utils.py: build_input_from_ids, build_uni_input_from_ids, build_decoder_input); `cloze_input`,
`unidirectional_input` and `decoder_inputs` give their results.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from glm_jax.model.batch import Batch
from glm_jax.tasks.errors import TaskError
from glm_jax.tokenizers.special import SpecialTokens


@dataclasses.dataclass(frozen=True)
class Answer:
    """What fills one blank.

    Attributes:
      column: where the blank stands in Part A; every token of the answer takes its position.
      ids: the answer's tokens, its end token included where that is to be predicted; None asks for a prediction behind
        the start token only, as single-token verbalizers need it.
      known: this many ids at the front are given and carry no loss.
      group: answers of one group see each other (the earlier blanks of one text); other groups do not exist for them
        (candidates for one blank). Counted from 1; 0 is Part A.
    """

    column: int
    ids: Sequence[int] | None
    known: int = 0
    group: int = 1


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One example as the model reads it: Part A, then Part B. Lists of one length; `target_ids` are next tokens."""

    tokens: list[int]
    position_ids: list[int]
    block_position_ids: list[int]
    prefix_length: int
    target_ids: list[int]
    target_weights: list[int]
    segment_ids: list[int]  # the group of each token, 0 in Part A; or the example, where several share a row
    prompt_columns: tuple[int, ...] = ()  # where soft prompts replace the word embedding

    def __len__(self) -> int:
        return len(self.tokens)


def encode_example(
    start: int,
    context: Sequence[int],
    answers: Sequence[Answer],
    *,
    block_positions: bool = True,
    prompt_columns: Sequence[int] = (),
) -> Encoded:
    """Part A `context`, and behind it for every answer `start` and its tokens but the last.

    `block_positions=False` gives all tokens of an answer the block position 1, as the original's --no-block-position.
    Raises TaskError for a blank outside the context and for an answer without tokens.
    """
    tokens, n = list(context), len(context)
    positions, blocks = list(range(n)), [0] * n
    targets, weights, groups = [0] * n, [0] * n, [0] * n
    for answer in answers:
        if not 0 <= answer.column < n:
            raise TaskError(f"the blank stands at column {answer.column} of a context of {n} tokens")
        ids = [0] if answer.ids is None else list(answer.ids)
        if not ids:
            raise TaskError("an answer without tokens cannot be predicted: give it text, or its end token")
        tokens += [start, *ids[:-1]]
        positions += [answer.column] * len(ids)
        blocks += range(1, len(ids) + 1) if block_positions else [1] * len(ids)
        targets += ids
        weights += [0] * answer.known + [1] * (len(ids) - answer.known)
        groups += [answer.group] * len(ids)
    return Encoded(tokens, positions, blocks, n, targets, weights, groups, tuple(prompt_columns))


def cloze_input(
    special: SpecialTokens,
    text_a: Sequence[int],
    text_b: Sequence[int] | None = None,
    answer: Sequence[int] | None = None,
    *,
    max_length: int,
    mask: int | None = None,
    separator: int | None = None,
    add_cls: bool = True,
    add_piece: bool = True,
    add_eos: bool = True,
) -> Encoded:
    """[CLS] text_a text_b [EOS], and for its last blank [START] answer: the original's build_input_from_ids.

    Args:
      text_b: comes behind `separator` where that is given.
      answer: None asks for the start token's prediction (`add_piece`), or for nothing: a classifier's input.
      max_length: the context is cut to it; an answer comes on top, as in the original.
      mask: the blank's id, by default [MASK].

    Raises TaskError where no blank is left.
    """
    ids = ([special.cls] if add_cls else []) + list(text_a)
    if text_b is not None:
        ids += ([] if separator is None else [separator]) + list(text_b)
    if len(ids) >= max_length - int(add_eos):
        ids = ids[: max_length - 1]
    ids += [special.eos] if add_eos else []
    if answer is None and not add_piece:
        return encode_example(special.start, ids, ())
    return encode_example(special.start, ids, [Answer(last_blank(ids, special.mask if mask is None else mask), answer)])


def unidirectional_input(
    special: SpecialTokens, text: Sequence[int], answer: Sequence[int], *, mask: int | None = None
) -> Encoded:
    """[CLS] [MASK], and behind it [START] text answer with a loss on the answer only: build_uni_input_from_ids."""
    mask = special.mask if mask is None else mask
    return encode_example(special.start, [special.cls, mask], [Answer(1, [*text, *answer], known=len(text))])


def decoder_inputs(
    special: SpecialTokens, context: Sequence[int], answers: Sequence[Sequence[int]], *, width: int = 16
) -> list[Encoded]:
    """Part B alone, a row an answer, for a context that is encoded once: the original's --fast-decode.

    Blocks start at the context's first blank; answers are cut to `width` tokens. `prefix_length` stays the context's.
    """
    column = list(context).index(special.mask)
    rows = [encode_example(special.start, context, [Answer(column, answer[:width])]) for answer in answers]
    n = len(context)
    fields = ("tokens", "position_ids", "block_position_ids", "target_ids", "target_weights", "segment_ids")
    return [dataclasses.replace(row, **{name: getattr(row, name)[n:] for name in fields}) for row in rows]


def last_blank(ids: Sequence[int], mask: int) -> int:
    """The column of the last blank. The original's builders take the last, its decoding the first.

    Raises TaskError where there is none: it was cut off, or never there.
    """
    for column in range(len(ids) - 1, -1, -1):
        if ids[column] == mask:
            return column
    raise TaskError(
        f"no blank is left in a context of {len(ids)} tokens: raise max_length, or mark more of the prompt with P"
    )


def join(examples: Sequence[Encoded]) -> Encoded:
    """One row of several examples that do not see each other: every Part A, then every Part B, each its own segment.

    Raises TaskError for candidates beside each other, which need the segments for themselves.
    """
    if any(max(example.segment_ids, default=0) > 1 for example in examples):
        raise TaskError("an example with several candidates for a blank needs a row of its own")

    def joined(name):
        values = [getattr(example, name) for example in examples]
        parts = [v[: e.prefix_length] for v, e in zip(values, examples, strict=True)]
        parts += [v[e.prefix_length :] for v, e in zip(values, examples, strict=True)]
        return list(itertools.chain.from_iterable(parts))

    names = ("tokens", "position_ids", "block_position_ids", "target_ids", "target_weights")
    numbers = range(1, len(examples) + 1)
    contexts = [n for n, e in zip(numbers, examples, strict=True) for _ in range(e.prefix_length)]
    answers = [n for n, e in zip(numbers, examples, strict=True) for _ in range(len(e) - e.prefix_length)]
    return Encoded(
        **{name: joined(name) for name in names}, prefix_length=len(contexts), segment_ids=contexts + answers
    )


def collate(
    rows: Sequence[Encoded],
    *,
    pad: int,
    length: int | None = None,
    num_targets: int | None = None,
    segments: bool = False,
) -> Batch:
    """A Batch of NumPy arrays; with `segments`, also of the rows' segments, which candidates beside each other need.

    `length` (T) and `num_targets` (K) default to what the rows need. Raises TaskError for a row that is longer than
    `length` or has more targets than `num_targets`.
    """
    if not rows:
        raise TaskError("there are no rows to make a batch of")
    longest, most = max(map(len, rows)), max(sum(map(bool, row.target_weights)) for row in rows)
    length = longest if length is None else length
    num_targets = max(1, most) if num_targets is None else num_targets
    if longest > length:
        raise TaskError(
            f"an example of {longest} tokens does not fit rows of {length}: raise the length, or shorten it"
        )
    if most > num_targets:
        raise TaskError(f"an example with {most} targets does not fit {num_targets}: raise num_targets")

    def pack(name, value=0):
        array = np.full((len(rows), length), value, np.int32)
        for i, row in enumerate(rows):
            array[i, : len(row)] = getattr(row, name)
        return array

    index, ids = (np.zeros((len(rows), num_targets), np.int32) for _ in range(2))
    weights = np.zeros((len(rows), num_targets), np.float32)
    for i, row in enumerate(rows):
        at = np.flatnonzero(row.target_weights)
        index[i, : len(at)] = at
        ids[i, : len(at)] = np.asarray(row.target_ids)[at]
        weights[i, : len(at)] = np.asarray(row.target_weights)[at]
    return Batch(
        tokens=pack("tokens", pad),
        position_ids=pack("position_ids"),
        block_position_ids=pack("block_position_ids"),
        prefix_lengths=np.array([row.prefix_length for row in rows], np.int32),
        target_index=index,
        target_ids=ids,
        target_weights=weights,
        target_source=np.zeros_like(ids),
        objective=np.zeros(len(rows), np.int32),
        segment_ids=pack("segment_ids") if segments else None,
    )
