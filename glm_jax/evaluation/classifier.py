"""A classifier on the first token, the paper's comparison: no blank, no verbalizer, a head trained from scratch."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from glm_jax.evaluation.cloze import forward
from glm_jax.evaluation.results import Options, Result, result_of
from glm_jax.model.classifier_head import classifier_logits
from glm_jax.model.soft_prompt import prompt_length
from glm_jax.model.transformer import GLM
from glm_jax.tasks.batch import batches_by_length
from glm_jax.tasks.encoding import Encoded, encode_example
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example, error_context, read
from glm_jax.tasks.task import AnyTask, Task
from glm_jax.tasks.templates import TemplateEncoder
from glm_jax.tokenizers.base import Tokenizer


def num_classes(task: AnyTask) -> int:
    """The number of classes of a task's head. Raises TaskError for a task without a verbalizer."""
    if not isinstance(task, Task) or task.template.verbalizer is None:
        raise TaskError(f"{task.name} has no fixed classes: use the head 'cloze'")
    return len(task.template.verbalizer)


def encode_for_classifier(task: Task, example: Example, encoder: TemplateEncoder, pool: str = "cls") -> Encoded:
    """Part A of the example's template alone, with the classes as candidates; its one target stands for the class.

    With the pool "start", the start token follows.
    """
    with error_context(example):
        row = encoder.encode(task.template, example.fields)[0]
    one_target = {"target_index": (0,), "target_ids": (0,), "target_candidate": (0,)}
    answers = None if pool == "start" else ()
    encoded = encode_example(
        encoder.tokenizer.special.start, row.context, row.blanks[:1] if answers is None else (), answers,
        prompt_columns=row.prompt_columns,
    )  # fmt: skip
    return dataclasses.replace(encoded, candidates=tuple(range(num_classes(task))), **one_target)


def evaluate_classifier(
    model: GLM, params: Any, tokenizer: Tokenizer, task: AnyTask, options: Options, name: str | None = None
) -> Result:
    """The head's log-probabilities of every example's classes, and the task's metric.

    Args:
      params: of the model, with those of the head under "classifier".

    Raises:
      TaskError: a task without fixed classes, or a head with another number of them.
    """
    classes = num_classes(task)
    if "classifier" not in params:
        raise TaskError("the checkpoint has no classifier: use the head 'cloze', or fine-tune with head 'classifier'")
    if (has := params["classifier"]["output"]["bias"].size) != classes:
        raise TaskError(f"the checkpoint's classifier has {has} classes, but {task.name} has {classes}")
    examples = read(task.source, options.split, options.limit)
    encoder = task.encoder(tokenizer, model.config.num_positions, prompt_tokens=prompt_length(params))
    encoded = [encode_for_classifier(task, example, encoder, options.pool) for example in options.share.of(examples)]
    scores: list[Sequence[float]] = [()] * len(encoded)
    for numbers, batch in batches_by_length(encoded, options.batch_size, pad=tokenizer.special.pad):
        for i, values in zip(numbers, np.asarray(_scores(params, batch, model=model, pool=options.pool)), strict=False):
            scores[i] = values.tolist()
    scores = options.share.join(scores)
    return result_of(task, examples, [(s, [False] * len(s)) for s in scores], options, name)


@functools.partial(jax.jit, static_argnames=("model", "pool"))
def _scores(params, batch, *, model, pool):
    hidden = forward(model, params, batch, target_index=None, head=False)
    return classifier_logits(params["classifier"], hidden, batch.prefix_lengths, pool)
