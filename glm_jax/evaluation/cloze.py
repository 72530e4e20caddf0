"""Scores of candidates: all candidates of an example in one forward pass, after one shared Part A (paper, section 2.3).

Each candidate is a segment of its own (`Batch.segment_ids`): it attends to Part A and to itself. Its score is the sum
of its tokens' log-probabilities. Verbalizers of one token are scored together by the output at one start token.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from glm_jax.evaluation.results import Options, Result, result_of
from glm_jax.model.losses import token_losses
from glm_jax.model.soft_prompt import prompt_length, prompt_vectors, soft_prompt_embeddings
from glm_jax.model.transformer import GLM
from glm_jax.tasks.batch import TaskBatch, batches_by_length
from glm_jax.tasks.encoding import Encoded, check_row, in_place
from glm_jax.tasks.examples import error_context, read
from glm_jax.tasks.task import Task
from glm_jax.tokenizers.base import Tokenizer


def evaluate_cloze(
    model: GLM, params: Any, tokenizer: Tokenizer, task: Task, options: Options, name: str | None = None
) -> Result:
    """The scores of every example's candidates, and the task's metric.

    Raises:
      TaskError: a split or an example that cannot be used.
    """
    examples = read(task.source, options.split, options.limit)
    encoder = task.encoder(tokenizer, model.config.num_positions, options.multi_token, prompt_length(params))
    encoded = []
    for example in options.share.of(examples):
        with error_context(example):
            rows = encoder.encode(task.template, example.fields, row_length=2 * encoder.max_length)
            if model.config.layout == "masked":
                rows = in_place(rows, tokenizer.special.mask, tokenizer.special.end)
            encoded.append(rows)
    scores = candidate_logprobs(
        model, params, encoded, pad=tokenizer.special.pad, batch_size=options.batch_size,
        length_penalty=task.length_penalty,
    )  # fmt: skip
    pairs = options.share.join([(s.values.tolist(), s.greedy.tolist()) for s in scores])
    return result_of(task, examples, [(values, greedy) for values, greedy in pairs], options, name)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Of one example's candidates: `values` float32 [C], and `greedy` bool [C], whether greedy decoding writes it."""

    values: Float[np.ndarray, "C"]
    greedy: Bool[np.ndarray, "C"]


def candidate_logprobs(
    model: GLM,
    params: Any,
    examples: Sequence[Sequence[Encoded]],
    *,
    pad: int,
    batch_size: int = 16,
    length_penalty: float = 0.0,
    normalize: bool = True,
    prompt: Float[Array, "P D"] | None = None,
) -> list[Scores]:
    """The scores of every example's candidates, in the order of the examples.

    The other rows of a batch, and padding, change only the last bits.

    Args:
      examples: the rows of each example, as `encode_candidates` gives them.
      pad: id of padding tokens.
      length_penalty, normalize: see `candidate_scores`.
      prompt: the vectors of a soft prompt, for the rows' `prompt_columns`.
    """
    if model.config.layout != "glm":
        for row in itertools.chain.from_iterable(examples):
            check_row(row, model.config)
    counts = [1 + max(number for row in rows for number in row.candidates) for rows in examples]
    values, greedy = [np.zeros(count, np.float32) for count in counts], [np.zeros(count, bool) for count in counts]
    rows = [row for rows in examples for row in rows]
    owners = [owner for owner, rows in enumerate(examples) for _ in rows]
    for numbers, batch in batches_by_length(rows, batch_size, pad=pad, segments=True):
        scores, is_greedy = map(
            np.asarray,
            _score(params, batch, prompt, model=model, length_penalty=length_penalty, normalize=normalize),
        )
        for i, number in enumerate(numbers):
            owner, candidates = owners[number], list(rows[number].candidates)
            values[owner][candidates] = scores[i, : len(candidates)]
            greedy[owner][candidates] = is_greedy[i, : len(candidates)]
    return [Scores(*pair) for pair in zip(values, greedy, strict=True)]


@functools.partial(jax.jit, static_argnames=("model", "length_penalty", "normalize"))
def _score(params, batch, prompt, *, model, length_penalty, normalize):
    logits = forward(model, params, batch, prompt)
    return candidate_scores(logits, batch, length_penalty=length_penalty, normalize=normalize)


def forward(
    model: GLM, params: Any, batch: TaskBatch, prompt: Float[Array, "P D"] | None = None, **options: Any
) -> Float[Array, "B K V"]:
    """Logits at the targets of a batch.

    Args:
      prompt: the vectors of a soft prompt, for `batch.prompt_columns`; by default those of params["prompt"].
      options: keyword arguments of `GLM.apply`.
    """
    embeddings = None
    if prompt is None and "prompt" in params and batch.prompt_columns is not None:
        prompt = prompt_vectors(params["prompt"])
    if prompt is not None:
        embeddings = soft_prompt_embeddings(model, params, batch.tokens, prompt, batch.prompt_columns)
    inputs = batch.model_inputs() | options
    return model.apply({"params": params}, input_embeddings=embeddings, **inputs)


def candidate_scores(
    logits: Float[Array, "B K V"],
    batch: TaskBatch,
    *,
    length_penalty: float = 0.0,
    normalize: bool = True,
) -> tuple[Float[Array, "B C"], Bool[Array, "B C"]]:
    """Each candidate's score, 0 where a row has none; and whether all its tokens are the model's first choice.

    A score is the sum of log-probabilities (of logits with `normalize=False`) divided by the number of tokens to the
    power of `length_penalty`, as in the original.
    """
    ids, weights = batch.target_ids, batch.target_weights
    target_logit = jnp.take_along_axis(logits, ids[:, :, None], axis=2)[:, :, 0]
    values = -token_losses(logits, ids) if normalize else target_logit
    numbers = jnp.arange(batch.candidate_mask.shape[1])
    belongs = (batch.target_candidate[:, :, None] == numbers[None, None, :]) * weights[:, :, None]
    total = jnp.einsum("bk,bkc->bc", values, belongs, precision=jax.lax.Precision.HIGHEST)
    lengths = jnp.maximum(belongs.sum(1), 1.0)
    missed = jnp.einsum("bk,bkc->bc", (logits.argmax(-1) != ids).astype(belongs.dtype), belongs)
    return total / lengths**length_penalty, (missed == 0) & (batch.candidate_mask > 0)


def cloze_loss(
    scores: Float[Array, "B C"], labels: Int[Any, "B"], mask: Float[Any, "B C"], kind: str = "cross_entropy"
) -> Float[Array, ""]:
    """The fine-tuning loss over candidates' scores: the original's --loss-func, mean over the batch.

    Args:
      scores: of the candidates.
      labels: the right candidates.
      mask: 1 where a row has a candidate.
      kind: cross_entropy: of the softmax over candidates. hinge: Σ max(0, 1 + score - score of the label) - 1.
        generative: minus the label's score. mix: generative + cross_entropy. adapet: the other candidates' scores minus
        the label's.

    Raises:
      ValueError: another `kind`.
    """
    label_scores = jnp.take_along_axis(scores, labels[:, None], axis=1)
    one_hot = (jnp.arange(scores.shape[1])[None] == labels[:, None]).astype(scores.dtype)
    masked = scores * mask - 10000.0 * (1.0 - mask)
    cross_entropy = -(jax.nn.log_softmax(masked, axis=1) * one_hot).sum(1).mean()
    generative = -label_scores.mean()
    losses = {
        "cross_entropy": cross_entropy,
        "hinge": ((jnp.maximum(0.0, 1.0 + scores - label_scores) * mask).sum(1) - 1.0).mean(),
        "generative": generative,
        "mix": generative + cross_entropy,
        "adapet": (scores * (1.0 - 2.0 * one_hot) * mask).sum(1).mean(),
    }
    if kind not in losses:
        raise ValueError(f"unknown loss {kind!r}; known: {', '.join(losses)}")
    return losses[kind]
