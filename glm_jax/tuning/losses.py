"""The losses of fine-tuning: of a choice among candidates, of an answer's tokens, of a classifier's classes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from glm_jax.corruption import random_bits
from glm_jax.corruption.baselines import draw_masked
from glm_jax.evaluation.cloze import candidate_scores, cloze_loss, forward
from glm_jax.model.classifier_head import classifier_logits
from glm_jax.model.fused_cross_entropy import fused_linear_cross_entropy
from glm_jax.model.losses import token_losses
from glm_jax.model.transformer import GLM
from glm_jax.tasks.batch import TaskBatch
from glm_jax.training.train_step import LossSums, Objective


def task_objective(
    model: GLM,
    *,
    loss: str = "cross_entropy",
    label_smoothing: float = 0.0,
    length_penalty: float = 0.0,
    head: str = "cloze",
    pool: str = "cls",
    choices: bool = True,
    generation: bool = False,
) -> Objective:
    """The objective of `train_step.make_train_step` for a `TaskBatch`.

    An example with a label counts once, with the loss of its candidates (`cloze_loss`); one without a label counts each
    of its targets. The original averages in the same way.

    Args:
      loss: of the candidates; see `cloze_loss`.
      label_smoothing: of the targets of written answers.
      length_penalty: of the candidates' scores; see `candidate_scores`.
      head: "cloze", or "classifier" for `classifier_logits` on params["classifier"], which reads the token `pool`.
      choices: whether there are rows whose candidates are compared.
      generation: whether there are rows whose answers are written.
    """
    if head == "classifier":
        row_losses = functools.partial(_classifier_losses, model, pool=pool)
    elif choices and generation and model.config.layout == "masked":
        raise ValueError("a masked language model learns to choose or to write, not both in one run: give tasks apart")
    elif choices:
        smoothing = label_smoothing if generation else None
        row_losses = functools.partial(
            _candidate_losses, model, kind=loss, length_penalty=length_penalty, label_smoothing=smoothing
        )
    else:
        of_answers = _denoising_losses if model.config.layout == "masked" else _answer_losses
        row_losses = functools.partial(of_answers, model, label_smoothing=label_smoothing)

    def objective(params: Any, batch: TaskBatch, dropout_key: Any = None, score: bool = False):
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        total, losses, weights = row_losses(params, batch, deterministic=dropout_key is None, rngs=rngs)
        return total, jax.lax.stop_gradient(_sums(losses, weights, batch))

    return objective


def _classifier_losses(model, params, batch, *, pool, **options):
    """The sum to minimise, and each row's loss and weight: cross entropy of the classes."""
    hidden = forward(model, params, batch, target_index=None, head=False, **options)
    scores = classifier_logits(params["classifier"], hidden, batch.prefix_lengths, pool)
    losses = _choice_losses(scores, batch, "cross_entropy")
    return losses.sum(), losses, (batch.labels >= 0).astype(jnp.float32)


def _answer_losses(model, params, batch, *, label_smoothing, **options):
    """The sum to minimise, and each row's loss and weight: cross entropy of the targets, without their logits."""
    hidden = forward(model, params, batch, head=False, **options)
    written = fused_linear_cross_entropy(
        hidden, params["word_embeddings"]["embedding"], batch.target_ids, batch.target_weights,
        label_smoothing=label_smoothing,
    )  # fmt: skip
    return written.total, written.losses.sum(1), batch.target_weights.sum(1)


def _denoising_losses(model, params, batch, *, label_smoothing, **options):
    """The sum to minimise, and each row's loss and weight, of an answer of which a random part is masked.

    As in pretraining by masked diffusion, n of the answer's m tokens are masked, n uniform in 1 … m, with the weight
    m / n each (Nie et al. 2025, arXiv 2502.09992, section 2.3). Which ones depends on the global example index and on
    the example, so that no mesh changes it and every order of the examples, hence every seed, masks others.
    """
    return _answer_losses(model, params, partly_masked(batch), label_smoothing=label_smoothing, **options)


def partly_masked(batch: TaskBatch) -> TaskBatch:
    """Rows with masks at all targets -> rows with some of these revealed, and the weights of the others."""
    used = batch.target_weights > 0

    def draw(index, tokens, ids, used):
        content = (tokens.sum() + jnp.where(used, ids, 0).sum()).astype(jnp.uint32)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), index), content)
        bits = jax.random.bits(key, (used.size + 1,), jnp.uint32)
        return draw_masked(bits, used, xp=jnp, random=random_bits)

    is_masked, weights = jax.vmap(draw)(batch.index.astype(jnp.uint32), batch.tokens, batch.target_ids, used)
    columns = jnp.where(used & ~is_masked, batch.target_index, batch.tokens.shape[1])
    rows = jnp.arange(len(batch.tokens))[:, None]
    return batch.replace(
        tokens=batch.tokens.at[rows, columns].set(batch.target_ids, mode="drop"),
        target_weights=jnp.where(is_masked, weights[:, None], 0.0).astype(jnp.float32),
    )


def _candidate_losses(model, params, batch, *, kind, length_penalty, label_smoothing, **options):
    """The sum to minimise, and each row's loss and weight: of candidates; of targets in rows without a label.

    `label_smoothing` None: every row has a label.
    """
    is_choice = batch.labels >= 0
    logits = forward(model, params, batch, **options)
    scores, _ = candidate_scores(logits, batch, length_penalty=length_penalty)
    losses = jnp.where(is_choice, _choice_losses(scores, batch, kind), 0.0)
    weights = is_choice.astype(jnp.float32)
    if label_smoothing is not None:
        of_targets = token_losses(logits, batch.target_ids, label_smoothing) * batch.target_weights
        losses = jnp.where(is_choice, losses, of_targets.sum(1))
        weights = jnp.where(is_choice, weights, batch.target_weights.sum(1))
    return losses.sum(), losses, weights


def _choice_losses(scores, batch, kind):
    """The loss of each row's choice among its candidates; of the first, where there is no label."""
    labels = jnp.maximum(batch.labels, 0)
    one = jax.vmap(lambda s, label, mask: cloze_loss(s[None], label[None], mask[None], kind))
    return one(scores, labels, batch.candidate_mask)


def _sums(losses, weights, batch):
    return LossSums(
        loss=losses.sum(),
        weight=weights.sum(),
        correct=jnp.zeros(()),
        raw_tokens=(batch.prefix_lengths + batch.target_weights.sum(1)).sum().astype(jnp.float32),
    )
