"""The losses of fine-tuning: of a choice among candidates, of an answer's tokens, of a classifier's classes."""

from typing import Any

import jax
import jax.numpy as jnp

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
      head: "cloze", or "classifier" for `classifier_logits` on params["classifier"].
      choices: whether there are rows whose candidates are compared.
      generation: whether there are rows whose answers are written.
    """

    writes = head == "cloze" and not choices

    def objective(params: Any, batch: TaskBatch, dropout_key: Any = None, score: bool = False):
        labels, is_choice = jnp.maximum(batch.labels, 0), batch.labels >= 0
        options = {"deterministic": dropout_key is None, "rngs": None}
        if dropout_key is not None:
            options["rngs"] = {"dropout": dropout_key}
        each, weight = jnp.zeros(labels.shape), is_choice.astype(jnp.float32)
        if head == "classifier":
            hidden = model.apply(
                {"params": params}, **batch.model_inputs() | {"target_index": None}, head=False, **options
            )
            scores = classifier_logits(params["classifier"], hidden, batch.prefix_lengths)
            each = _per_row(scores, labels, batch.candidate_mask, "cross_entropy")
        elif writes:
            hidden = forward(model, params, batch, head=False, **options)
            written = fused_linear_cross_entropy(
                hidden, params["word_embeddings"]["embedding"], batch.target_ids, batch.target_weights,
                label_smoothing=label_smoothing,
            )  # fmt: skip
            each, weight = written.losses.sum(1), batch.target_weights.sum(1)
        else:
            logits = forward(model, params, batch, **options)
            scores, _ = candidate_scores(logits, batch, length_penalty=length_penalty)
            each = jnp.where(is_choice, _per_row(scores, labels, batch.candidate_mask, loss), 0.0)
            if generation:
                losses = token_losses(logits, batch.target_ids, label_smoothing) * batch.target_weights
                each = jnp.where(is_choice, each, losses.sum(1))
                weight = jnp.where(is_choice, weight, batch.target_weights.sum(1))
        total = written.total if writes else each.sum()
        read = batch.prefix_lengths + batch.target_weights.sum(1)
        sums = LossSums(
            loss=each.sum(),
            weight=weight.sum(),
            correct=jnp.zeros(()),
            raw_tokens=read.sum().astype(jnp.float32),
        )
        return total, jax.lax.stop_gradient(sums)

    return objective


def _per_row(scores, labels, mask, kind):
    return jax.vmap(lambda s, label, m: cloze_loss(s[None], label[None], m[None], kind))(scores, labels, mask)
