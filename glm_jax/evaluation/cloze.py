"""Scores of candidates: all of an example in one forward pass, behind one shared Part A (paper, section 2.3).

Each candidate is an answer of its own (`Batch.segment_ids`): it sees Part A and itself. A candidate's score is the sum
of its tokens' log-probabilities; a verbalizer of one token is the case in which all candidates ask the same start
token.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from glm_jax.model.batch import Batch
from glm_jax.model.losses import token_losses
from glm_jax.model.soft_prompt import soft_prompt
from glm_jax.model.transformer import GLM
from glm_jax.tasks.encoding import Answer, Encoded, collate, encode_example
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.prompts import Cloze

_BUCKET = 64  # row lengths are rounded up to this, so that few programs are compiled


@flax.struct.dataclass
class ClozeBatch:
    """Rows of candidates. Slot k of a row predicts `batch.target_ids` for candidate `candidate[k]` of the row."""

    batch: Batch
    candidate: Any  # int32 [B K]
    candidate_mask: Any  # float32 [B C], 1 where the row has such a candidate
    labels: Any  # int32 [B], the right candidate; -1 where none is known
    prompt_columns: Any = None  # int32 [B P], for soft prompts


@dataclasses.dataclass(frozen=True)
class PackedRow:
    """A row of the model, and the numbers of the example's candidates in it."""

    encoded: Encoded
    candidates: tuple[int, ...]
    targets: tuple[tuple[int, int, int], ...]  # (column, id, place among `candidates`)

    def __len__(self) -> int:
        return len(self.encoded)


def pack(cloze: Cloze, row_length: int | None = None) -> list[PackedRow]:
    """One row for all candidates, or as few as hold them within `row_length` tokens.

    Raises TaskError where a single candidate with its context is longer than that.
    """
    if cloze.single_token:
        encoded = cloze.rows()[0]
        column, count = encoded.prefix_length, len(cloze.candidates)
        rows = [(encoded, range(count), [(column, ids[0], i) for i, ids in enumerate(cloze.candidates)])]
    else:
        rows = list(_packed(cloze, row_length))
    for encoded, numbers, _ in rows:
        if row_length is not None and len(encoded) > row_length:
            raise TaskError(
                f"candidate {numbers[0]} with its context has {len(encoded)} tokens, but rows have {row_length}: raise "
                "row_length, or lower max_length"
            )
    return [PackedRow(encoded, tuple(numbers), tuple(targets)) for encoded, numbers, targets in rows]


def _packed(cloze, row_length):
    shared = len(cloze.contexts) == 1
    group: list[int] = []
    used = 0
    for number, ids in enumerate(cloze.candidates):
        context = cloze.contexts[0 if shared else number]
        fits = row_length is None or len(context.ids) + used + len(ids) <= row_length
        if group and not (shared and fits):
            yield _row(cloze, group)
            group, used = [], 0
        group.append(number)
        used += len(ids)
    yield _row(cloze, group)


def _row(cloze, numbers):
    context = cloze.contexts[0 if len(cloze.contexts) == 1 else numbers[0]]
    answers = [
        Answer(context.column, cloze.candidates[n], cloze.known, group) for group, n in enumerate(numbers, start=1)
    ]
    encoded = encode_example(cloze.start, context.ids, answers, prompt_columns=context.prompt_columns)
    columns = [column for column, weight in enumerate(encoded.target_weights) if weight]
    return encoded, numbers, [(c, encoded.target_ids[c], encoded.segment_ids[c] - 1) for c in columns]


def cloze_batch(
    rows: Sequence[PackedRow],
    labels: Sequence[int] | None = None,
    *,
    pad: int,
    length: int | None = None,
    num_targets: int | None = None,
    num_candidates: int | None = None,
    segments: bool = True,
) -> ClozeBatch:
    """NumPy arrays of rows. `labels` are places within each row, -1 for none; sizes default to what the rows need.

    `segments=False` is for rows of one example with one answer, or one prediction for all. Raises TaskError for rows
    that do not fit the sizes.
    """
    most = max(len(row.targets) for row in rows)
    widest = max(len(row.candidates) for row in rows)
    num_targets, num_candidates = num_targets or most, num_candidates or widest
    if widest > num_candidates or most > num_targets:
        raise TaskError(
            f"a row has {widest} candidates with {most} targets; there is room for {num_candidates} and {num_targets}"
        )
    batch = collate([row.encoded for row in rows], pad=pad, length=length, segments=segments)
    index, ids, candidate = (np.zeros((len(rows), num_targets), np.int32) for _ in range(3))
    weights, mask = np.zeros((len(rows), num_targets), np.float32), np.zeros((len(rows), num_candidates), np.float32)
    columns = np.zeros((len(rows), max(len(row.encoded.prompt_columns) for row in rows)), np.int32)
    for i, row in enumerate(rows):
        count = len(row.targets)
        index[i, :count], ids[i, :count], candidate[i, :count] = np.array(row.targets, np.int32).T
        weights[i, :count] = 1
        mask[i, : len(row.candidates)] = 1
        if len(row.encoded.prompt_columns) != columns.shape[1]:
            raise TaskError("all rows of a batch need the same number of soft prompt tokens")
        columns[i] = row.encoded.prompt_columns
    batch = batch.replace(target_index=index, target_ids=ids, target_weights=weights, target_source=np.zeros_like(ids))
    labels = np.full(len(rows), -1, np.int32) if labels is None else np.asarray(labels, np.int32)
    return ClozeBatch(batch, candidate, mask, labels, columns if columns.size else None)


def candidate_scores(
    logits: Float[Array, "B K V"],
    rows: ClozeBatch,
    *,
    length_penalty: float = 0.0,
    normalize: bool = True,
) -> tuple[Float[Array, "B C"], Bool[Array, "B C"]]:
    """Each candidate's score, 0 where a row has none; and whether all its tokens are the model's first choice.

    A score is the sum of log-probabilities (of logits with `normalize=False`) over the number of tokens to the power
    of `length_penalty`, as in the original.
    """
    ids, weights = rows.batch.target_ids, rows.batch.target_weights
    picked = jnp.take_along_axis(logits, ids[:, :, None], axis=2)[:, :, 0]
    values = -token_losses(logits, ids) if normalize else picked
    numbers = jnp.arange(rows.candidate_mask.shape[1])
    belongs = (rows.candidate[:, :, None] == numbers[None, None, :]) * weights[:, :, None]
    sums = jnp.einsum("bk,bkc->bc", values, belongs, precision=jax.lax.Precision.HIGHEST)
    lengths = jnp.maximum(belongs.sum(1), 1.0)
    missed = jnp.einsum("bk,bkc->bc", (logits.argmax(-1) != ids).astype(belongs.dtype), belongs)
    return sums / lengths**length_penalty, (missed == 0) & (rows.candidate_mask > 0)


def forward(
    model: GLM, params: Any, rows: ClozeBatch, prompt: Float[Array, "P D"] | None = None, **options: Any
) -> Float[Array, "B K V"]:
    """Logits at the targets of a ClozeBatch; `prompt` are the vectors of a soft prompt; options as the model's."""
    batch = rows.batch

    def apply():
        return model.apply(
            {"params": params},
            batch.tokens,
            batch.position_ids,
            batch.block_position_ids,
            batch.prefix_lengths,
            target_index=batch.target_index,
            segment_ids=batch.segment_ids,
            **options,
        )

    if prompt is None:
        return apply()
    with soft_prompt(prompt, rows.prompt_columns):
        return apply()


@functools.partial(jax.jit, static_argnames=("model", "length_penalty", "normalize"))
def _score(params, rows, prompt, *, model, length_penalty, normalize):
    logits = forward(model, params, rows, prompt)
    return candidate_scores(logits, rows, length_penalty=length_penalty, normalize=normalize)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Of one example's candidates: `values` float32 [C], and `greedy` bool [C], whether greedy decoding writes it."""

    values: Float[np.ndarray, "C"]
    greedy: Bool[np.ndarray, "C"]


def candidate_logprobs(
    model: GLM,
    params: Any,
    examples: Sequence[Cloze],
    *,
    pad: int,
    batch_size: int = 16,
    row_length: int | None = None,
    length_penalty: float = 0.0,
    normalize: bool = True,
    prompt: Float[Array, "P D"] | None = None,
) -> list[Scores]:
    """Scores of every example's candidates, in the order of the examples.

    Candidates that do not fit a row of `row_length` tokens go into further rows behind the same Part A. What else is in
    a batch, and how far rows are padded, changes nothing but the last bits.
    """
    values = [np.zeros(len(cloze.candidates), np.float32) for cloze in examples]
    greedy = [np.zeros(len(cloze.candidates), bool) for cloze in examples]
    rows = [(owner, row) for owner, cloze in enumerate(examples) for row in pack(cloze, row_length)]
    for chunk in _batches(rows, batch_size):
        found, exact = _score(
            params,
            _fixed_size([row for _, row in chunk], pad, batch_size),
            prompt,
            model=model,
            length_penalty=length_penalty,
            normalize=normalize,
        )
        found, exact = np.asarray(found), np.asarray(exact)
        for i, (owner, row) in enumerate(chunk):
            values[owner][list(row.candidates)] = found[i, : len(row.candidates)]
            greedy[owner][list(row.candidates)] = exact[i, : len(row.candidates)]
    return [Scores(*pair) for pair in zip(values, greedy, strict=True)]


def _batches(rows, batch_size) -> Iterator[list]:
    """Rows of like length together, so that little is padded."""
    rows = sorted(rows, key=lambda owned: len(owned[1]))
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]


def _fixed_size(rows, pad, batch_size):
    """A batch of `batch_size` rows, the last of which are repeated, with sizes rounded up."""

    def up(number, multiple):
        return -(-number // multiple) * multiple

    length = up(max(map(len, rows)), _BUCKET)
    targets = up(max(len(row.targets) for row in rows), 8)
    candidates = up(max(len(row.candidates) for row in rows), 8)
    rows = [*rows, *[rows[-1]] * (batch_size - len(rows))]
    return cloze_batch(rows, pad=pad, length=length, num_targets=targets, num_candidates=candidates)


def cloze_loss(
    scores: Float[Array, "B C"], labels: Int[Any, "B"], mask: Float[Any, "B C"], kind: str = "cross_entropy"
) -> Float[Array, ""]:
    """What fine-tuning minimises over the candidates' scores: the original's --loss-func, mean over the batch.

    cross_entropy: of the softmax over candidates. hinge: Σ max(0, 1 + score - score of the label) - 1. generative: the
    label's score alone. mix: generative and cross_entropy. adapet: the wrong candidates' scores less the label's.
    Raises ValueError for another name.
    """
    own = jnp.take_along_axis(scores, labels[:, None], axis=1)
    one_hot = (jnp.arange(scores.shape[1])[None] == labels[:, None]).astype(scores.dtype)
    present = scores * mask - 10000.0 * (1.0 - mask)
    cross_entropy = -(jax.nn.log_softmax(present, axis=1) * one_hot).sum(1).mean()
    generative = -own.mean()
    losses = {
        "cross_entropy": cross_entropy,
        "hinge": ((jnp.maximum(0.0, 1.0 + scores - own) * mask).sum(1) - 1.0).mean(),
        "generative": generative,
        "mix": generative + cross_entropy,
        "adapet": (scores * (1.0 - 2.0 * one_hot) * mask).sum(1).mean(),
    }
    if kind not in losses:
        raise ValueError(f"unknown loss {kind!r}; known: {', '.join(losses)}")
    return losses[kind]
