"""A classifier on the first token, as the paper's comparison: no blank, no verbalizer, a head from scratch."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from glm_jax.evaluation.results import Options, Result, result_of
from glm_jax.model.classifier_head import classifier_logits
from glm_jax.model.transformer import GLM
from glm_jax.tasks.encoding import Encoded, collate, encode_example
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example, read
from glm_jax.tasks.prompts import PromptEncoder
from glm_jax.tasks.task import AnyTask, Task, encoder_of, named_example
from glm_jax.tokenizers.base import Tokenizer


def classes_of(task: AnyTask) -> int:
    """How many classes the head of a task has. Raises TaskError for a task whose answers are not always the same."""
    if not isinstance(task, Task) or task.prompt.verbalizer is None:
        raise TaskError(f"{task.name} has no fixed classes: use the head 'cloze'")
    return len(task.prompt.verbalizer)


def with_head(params: Mapping[str, Any], classifier: Mapping[str, Any] | None) -> dict[str, Any]:
    """The parameters of a checkpoint with those of its classifier, where it has one, under "classifier"."""
    return dict(params) if classifier is None else {**params, "classifier": classifier}


def context_of(task: Task, example: Example, encoder: PromptEncoder) -> Encoded:
    """What a classifier reads: the text of the prompt alone."""
    cloze = named_example(example, encoder.encode, task.prompt, example.fields)
    return encode_example(cloze.start, cloze.contexts[0].ids, ())


def evaluate(
    model: GLM, params: Any, tokenizer: Tokenizer, task: AnyTask, options: Options, name: str | None = None
) -> Result:
    """The head's scores of every example, and the task's numbers. The head is params["classifier"].

    Raises TaskError for a task without fixed classes, and for a head with more or fewer of them.
    """
    classes = classes_of(task)
    if "classifier" not in params:
        raise TaskError("the checkpoint has no classifier: use the head 'cloze', or fine-tune with head 'classifier'")
    if (has := params["classifier"]["output"]["bias"].size) != classes:
        raise TaskError(f"the checkpoint's classifier has {has} classes, but {task.name} has {classes}")
    examples = read(task.source, options.split, options.limit)
    encoder = encoder_of(task, tokenizer, model.config.num_positions)
    encoded = [context_of(task, example, encoder) for example in options.share.of(examples)]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    scores: list[Sequence[float]] = [()] * len(encoded)
    for at in range(0, len(order), options.batch_size):
        rows = order[at : at + options.batch_size]
        filled = [*rows, *[rows[-1]] * (options.batch_size - len(rows))]
        length = -(-max(len(encoded[i]) for i in rows) // 64) * 64
        batch = collate([encoded[i] for i in filled], pad=tokenizer.special.pad, length=length)
        found = np.asarray(_scores(params, batch, model=model))
        for place, i in enumerate(rows):
            scores[i] = found[place].tolist()
    scores = options.share.join(scores)
    return result_of(task, examples, [(s, [False] * len(s)) for s in scores], options, name)


@functools.partial(jax.jit, static_argnames="model")
def _scores(params, batch, *, model):
    hidden = model.apply(
        {"params": params}, batch.tokens, batch.position_ids, batch.block_position_ids, batch.prefix_lengths,
        method="hidden_states",
    )  # fmt: skip
    return classifier_logits(params["classifier"], hidden, batch.prefix_lengths)
