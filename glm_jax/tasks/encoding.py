"""From ids to the row that the model reads: Part A, then Part B (paper, section 2.1).

A task's example takes three shapes: `Example` (fields and a label), `Encoded` (a row as lists) and `TaskBatch` (arrays;
batch.py). Every row is made by `encode_example`, whose blanks are filled one after another (training, generation,
language modelling), or by `encode_candidates`, whose candidates compete for one blank. `pack` joins rows.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from glm_jax.model.config import GLMConfig, check_lengths
from glm_jax.tasks.errors import TaskError


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One row of the model, of T tokens and K targets.

    Attributes:
      tokens: T ids: Part A, then for each answer the start token and all its ids but the last.
      position_ids: T columns of Part A: a token's own, or that of its blank.
      block_position_ids: T numbers: 0 in Part A; 1, 2, … inside an answer.
      segment_ids: T numbers: 0 in Part A, 1 in Part B. Of several candidates, each counts as a segment of its own
        (1, 2, …) and does not see the others. In a packed row the number of the example, in Part A too.
      prefix_length: tokens of Part A.
      blanks: the columns of Part A that are filled.
      target_index: K columns of the row whose outputs predict the targets.
      target_ids: K ids.
      target_candidate: K indices into `candidates`: whose target it is.
      candidates: numbers, in the example, of the candidates in this row; (0,) for answers that are written.
      label: index into `candidates` of the right one; -1 where it is not known, and for answers that are written.
      prompt_columns: columns of Part A at which soft prompts replace the word embedding.
    """

    tokens: list[int]
    position_ids: list[int]
    block_position_ids: list[int]
    segment_ids: list[int]
    prefix_length: int
    blanks: tuple[int, ...] = ()
    target_index: tuple[int, ...] = ()
    target_ids: tuple[int, ...] = ()
    target_candidate: tuple[int, ...] = ()
    candidates: tuple[int, ...] = (0,)
    label: int = -1
    prompt_columns: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def context(self) -> list[int]:
        """Part A."""
        return self.tokens[: self.prefix_length]


def encode_example(
    start: int,
    context: Sequence[int],
    blanks: Sequence[int] = (),
    answers: Sequence[Sequence[int]] | None = (),
    *,
    given: int = 0,
    block_positions: bool = True,
    prompt_columns: Sequence[int] = (),
) -> Encoded:
    """A row whose blanks are filled in this order; each answer sees Part A and the answers before it.

    Args:
      start: id of the start token.
      context: Part A.
      blanks: the column of Part A that each answer fills. Without any, the row is Part A alone.
      answers: ids for each blank, with the end token where it is to be predicted. None: no answer is known, and Part B
        is the start token of the first blank.
      given: number of ids at the front of every answer that are no targets.
      block_positions: False gives every token of an answer the block position 1, as the original's --no-block-position.

    Raises:
      TaskError: a blank outside the context, or an answer without ids.
    """
    n = len(context)
    for blank in blanks:
        if not 0 <= blank < n:
            raise TaskError(f"the blank is at column {blank}, but the context has {n} tokens")
    tokens, positions, blocks = list(context), list(range(n)), [0] * n
    target_index: list[int] = []
    target_ids: list[int] = []
    if answers is None:
        tokens, positions, blocks = [*tokens, start], [*positions, blanks[0]], [*blocks, 1]
    for blank, answer in () if answers is None else zip(blanks, answers, strict=True):
        count = len(answer)
        if not count:
            raise TaskError("an answer without tokens cannot be predicted: give it text, or its end token")
        target_index += range(len(tokens) + given, len(tokens) + count)
        target_ids += answer[given:]
        tokens += [start, *answer[:-1]]
        positions += [blank] * count
        blocks += range(1, count + 1) if block_positions else [1] * count
    return Encoded(
        tokens,
        positions,
        blocks,
        [0] * n + [1] * (len(tokens) - n),
        prefix_length=n,
        blanks=tuple(blanks),
        target_index=tuple(target_index),
        target_ids=tuple(target_ids),
        target_candidate=(0,) * len(target_ids),
        prompt_columns=tuple(prompt_columns),
    )


def encode_candidates(
    start: int,
    context: Sequence[int],
    blank: int,
    candidates: Sequence[Sequence[int]],
    *,
    single_token: bool = False,
    given: int = 0,
    numbers: Sequence[int] | None = None,
    row_length: int | None = None,
    prompt_columns: Sequence[int] = (),
) -> list[Encoded]:
    """Rows of candidates for one blank: all in one row after one Part A, or in as few as hold them.

    Args:
      start, context, given, prompt_columns: see `encode_example`.
      blank: the column of Part A that the candidates fill.
      candidates: ids of each.
      single_token: every candidate is one id, and the output at one start token scores them all.
      numbers: of the candidates in their example; 0, 1, … by default.
      row_length: maximum number of tokens in a row; None: no limit.

    Raises:
      TaskError: as `encode_example`; a candidate that does not fit a row with its context.
    """
    numbers = range(len(candidates)) if numbers is None else numbers
    if single_token:
        row = encode_example(start, context, [blank], None, prompt_columns=prompt_columns)
        targets = {
            "target_index": (len(context),) * len(candidates),
            "target_ids": tuple(ids[0] for ids in candidates),
            "target_candidate": tuple(range(len(candidates))),
        }
        rows = [dataclasses.replace(row, candidates=tuple(numbers), **targets)]
    else:
        rows = []
        for group in _fill_rows(len(context), [len(ids) for ids in candidates], row_length):
            answers = [candidates[i] for i in group]
            blanks = [blank] * len(group)
            row = encode_example(start, context, blanks, answers, given=given, prompt_columns=prompt_columns)
            segments = [segment for segment, ids in enumerate(answers, start=1) for _ in ids]
            separate = {
                "segment_ids": [0] * len(context) + segments,
                "blanks": (blank,),
                "target_candidate": tuple(owner for owner, ids in enumerate(answers) for _ in ids[given:]),
                "candidates": tuple(numbers[i] for i in group),
            }
            rows.append(dataclasses.replace(row, **separate))
    for row in rows:
        if row_length is not None and len(row) > row_length:
            raise TaskError(
                f"candidate {row.candidates[0]} with its context has {len(row)} tokens, but rows have {row_length}: "
                "raise row_length, or lower max_length"
            )
    return rows


def check_row(row: Encoded, config: GLMConfig) -> None:
    """Raises ValueError for a row that is longer than the model's tables, TaskError for a Part B that it does not have.

    In a GLM only the positions count; in other layouts Part B has those after Part A.
    """
    if config.layout == "masked" and len(row) > row.prefix_length:
        raise TaskError("the model is a masked language model, which has no Part B to score: take another checkpoint")
    if config.layout == "glm":
        check_lengths(config, row.position_ids, row.block_position_ids)
    else:
        check_lengths(config, max(row.prefix_length - 1 + max(row.block_position_ids), *row.position_ids))


def in_place(rows: Sequence[Encoded], mask: int, end: int, length: int | None = None) -> list[Encoded]:
    """The rows for a masked language model, which has no Part B: masks stand in the place of the blank.

    There is a mask for each token of the longest candidate; the others reach that length with end tokens, so that all
    candidates of an example are scored in one row, each by the same number of predictions.

    Args:
      rows: of one example, as `encode_example` and `encode_candidates` make them.
      mask, end: ids.
      length: number of masks; by default what the candidates need.

    Raises:
      TaskError: a row with other than one blank, or an answer that is longer than `length`.
    """
    answers = []
    for row in rows:
        if len(row.blanks) != 1:
            raise TaskError(f"{len(row.blanks)} blanks in one text, but a masked language model fills one here")
        ids: list[list[int]] = [[] for _ in row.candidates]
        for owner, token in zip(row.target_candidate, row.target_ids, strict=True):
            ids[owner].append(token)
        answers.append(ids)
    longest = max(len(ids) for each in answers for ids in each) if length is None else length
    if too_long := [ids for each in answers for ids in each if len(ids) > longest]:
        raise TaskError(f"an answer of {len(too_long[0])} tokens does not fit {longest} masks")
    found = []
    for row, each in zip(rows, answers, strict=True):
        (blank,) = row.blanks
        tokens = row.context[:blank] + [mask] * longest + row.context[blank + 1 :]
        columns = tuple(range(blank, blank + longest))
        padded = [(*ids, *[end] * (longest - len(ids))) for ids in each]
        found.append(
            Encoded(
                tokens,
                list(range(len(tokens))),
                [0] * len(tokens),
                [0] * len(tokens),
                prefix_length=len(tokens),
                blanks=columns,
                target_index=columns * len(each),
                target_ids=tuple(itertools.chain.from_iterable(padded)),
                target_candidate=tuple(owner for owner in range(len(each)) for _ in columns),
                candidates=row.candidates,
                label=row.label,
                prompt_columns=tuple(c + (longest - 1) * (c > blank) for c in row.prompt_columns),
            )
        )
    return found


def _fill_rows(context_length, lengths, row_length):
    """Groups of consecutive candidates that fit a row with the context; one that fits no row is alone in its group."""
    groups = [[]]
    used = context_length
    for number, length in enumerate(lengths):
        if groups[-1] and row_length is not None and used + length > row_length:
            groups.append([])
            used = context_length
        groups[-1].append(number)
        used += length
    return groups


def pack(rows: Sequence[Encoded]) -> Encoded:
    """One row of several examples that do not see each other: every Part A, then every Part B, each its own segment.

    Raises:
      TaskError: a row with several candidates, which need the segments for themselves, or with soft prompts.
    """
    if any(max(row.segment_ids, default=0) > 1 or row.prompt_columns for row in rows):
        raise TaskError("an example with several candidates for a blank, or with soft prompts, needs a row of its own")

    def joined(name):
        values = [getattr(row, name) for row in rows]
        parts = [v[: row.prefix_length] for v, row in zip(values, rows, strict=True)]
        parts += [v[row.prefix_length :] for v, row in zip(values, rows, strict=True)]
        return list(itertools.chain.from_iterable(parts))

    part_a = [n for n, row in enumerate(rows, start=1) for _ in range(row.prefix_length)]
    part_b = [n for n, row in enumerate(rows, start=1) for _ in range(len(row) - row.prefix_length)]
    index: list[int] = []
    start_a, start_b = 0, len(part_a)
    blanks: list[int] = []
    for row in rows:
        index += [start_b + column - row.prefix_length for column in row.target_index]
        blanks += [start_a + column for column in row.blanks]
        start_a, start_b = start_a + row.prefix_length, start_b + len(row) - row.prefix_length
    ids = tuple(itertools.chain.from_iterable(row.target_ids for row in rows))
    return Encoded(
        joined("tokens"),
        joined("position_ids"),
        joined("block_position_ids"),
        part_a + part_b,
        prefix_length=len(part_a),
        blanks=tuple(blanks),
        target_index=tuple(index),
        target_ids=ids,
        target_candidate=(0,) * len(ids),
    )
