"""The original's builders of a task's rows (tasks/data_utils.py), from `encode_example`; only tests use them."""

import dataclasses
from collections.abc import Sequence

from glm_jax.tasks.encoding import Encoded, encode_example
from glm_jax.tasks.errors import TaskError
from glm_jax.tokenizers.special import SpecialTokens


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
      text_b: follows `separator` if that is given.
      answer: None asks for the start token's prediction (`add_piece`), or for nothing: a classifier's input.
      max_length: the context is cut to it; an answer comes on top, as in the original.
      mask: the blank's id, by default [MASK].
    """
    ids = ([special.cls] if add_cls else []) + list(text_a)
    if text_b is not None:
        ids += ([] if separator is None else [separator]) + list(text_b)
    if len(ids) >= max_length - int(add_eos):
        ids = ids[: max_length - 1]
    ids += [special.eos] if add_eos else []
    if answer is None and not add_piece:
        return encode_example(special.start, ids)
    blank = last_blank(ids, special.mask if mask is None else mask)
    if answer is not None:
        return encode_example(special.start, ids, [blank], [answer])
    row = encode_example(special.start, ids, [blank], None)
    return dataclasses.replace(row, target_index=(len(ids),), target_ids=(0,))


def unidirectional_input(
    special: SpecialTokens, text: Sequence[int], answer: Sequence[int], *, mask: int | None = None
) -> Encoded:
    """[CLS] [MASK], then [START] text answer with a loss on the answer only: build_uni_input_from_ids."""
    context = [special.cls, special.mask if mask is None else mask]
    return encode_example(special.start, context, [1], [[*text, *answer]], given=len(text))


def decoder_inputs(
    special: SpecialTokens, context: Sequence[int], answers: Sequence[Sequence[int]], *, width: int = 16
) -> list[Encoded]:
    """Part B alone, one row an answer, for a context that is encoded once: the original's --fast-decode.

    Answers are those of the context's first blank, cut to `width` tokens. `prefix_length` stays the context's.
    """
    blank, n = list(context).index(special.mask), len(context)
    rows = [encode_example(special.start, context, [blank], [answer[:width]]) for answer in answers]
    lists = ("tokens", "position_ids", "block_position_ids", "segment_ids")
    return [
        dataclasses.replace(
            row,
            **{name: getattr(row, name)[n:] for name in lists},
            target_index=tuple(column - n for column in row.target_index),
        )
        for row in rows
    ]


def segment_rows(
    start: int, context: Sequence[int], blank: int, candidates: Sequence[Sequence[int]], length: int
) -> tuple[list[Encoded], list[int]]:
    """Candidates in parts of `length` tokens, the earlier parts in the context: the original's --segment-length.

    Returns the rows, and for each the number of its candidate. A candidate's score is the sum over its rows.
    """
    rows, owners = [], []
    for number, ids in enumerate(candidates):
        for at in range(0, len(ids), length):
            longer = [*context[:blank], *ids[:at], *context[blank:]]
            rows.append(encode_example(start, longer, [blank + at], [ids[at : at + length]]))
            owners.append(number)
    return rows, owners


def last_blank(ids: Sequence[int], mask: int) -> int:
    """The column of the last blank. The original's builders take the last, its decoding the first."""
    columns = [column for column, token in enumerate(ids) if token == mask]
    if not columns:
        raise TaskError(f"no blank is left in a context of {len(ids)} tokens: raise max_length")
    return columns[-1]
