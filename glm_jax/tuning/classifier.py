"""A classifier on the first token, as the paper's comparison: no blank, no verbalizer, a head from scratch."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from glm_jax.heads import classify
from glm_jax.model import GLM
from glm_jax.tasks.evaluation import Options, Result, result_of
from glm_jax.tasks.examples import read
from glm_jax.tasks.inputs import collate
from glm_jax.tasks.task import Task
from glm_jax.tokenizers.base import Tokenizer
from glm_jax.tuning.rows import context_of, encoder_of


def evaluate(model: GLM, params: Any, tokenizer: Tokenizer, task: Task, options: Options) -> Result:
    """The head's scores of every example, and the task's numbers. The head is params["classifier"]."""
    examples = read(task.source, options.split, options.limit)
    encoder = encoder_of(task, tokenizer, model)
    encoded = [context_of(task, example, encoder) for example in examples]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    scores: list[Sequence[float]] = [()] * len(encoded)
    for at in range(0, len(order), options.batch_size):
        rows = order[at : at + options.batch_size]
        filled = [*rows, *[rows[-1]] * (options.batch_size - len(rows))]
        length = -(-max(len(encoded[i]) for i in rows) // 64) * 64
        batch, _ = collate([encoded[i] for i in filled], pad=tokenizer.special.pad, length=length)
        found = np.asarray(_scores(params, batch, model=model))
        for place, i in enumerate(rows):
            scores[i] = found[place].tolist()
    return result_of(task, examples, [(s, [False] * len(s)) for s in scores], options)


@functools.partial(jax.jit, static_argnames="model")
def _scores(params, batch, *, model):
    hidden = model.apply(
        {"params": params}, batch.tokens, batch.position_ids, batch.block_position_ids, batch.prefix_lengths,
        method="hidden_states",
    )  # fmt: skip
    return classify(params["classifier"], hidden, batch.prefix_lengths)
