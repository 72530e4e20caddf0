"""Baselines without a neural network: the most frequent class, a linear model of word counts, the copied source.

The linear model is logistic regression on TF-IDF of words and pairs of neighbours, the usual first thing to beat on
short texts (Jurafsky and Martin, Speech and Language Processing, chapters 5 and 6).
"""

import collections
import itertools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from glm_jax.evaluation.generation import as_lines
from glm_jax.evaluation.results import Options, Result, result_of
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example, error_context, read
from glm_jax.tasks.seq2seq import Seq2SeqTask
from glm_jax.tasks.task import AnyTask, Task
from glm_jax.tasks.templates import Mark

PENALTY = 0.1  # of the squared weights: half of it for every training example's nat
KINDS = ("majority", "tf_idf", "copy")
_NAMES = {"tf_idf": "TF-IDF"}  # in tables
_WORD = re.compile(r"\b\w\w+\b")


def baselines(task: AnyTask, options: Options, train_split: str = "train") -> list[Result]:
    """The results of the baselines for a task, on the examples of `options`.

    For tasks with fixed classes: `majority` and `TF-IDF`, which learn from `train_split`; TF-IDF reads the template's
    text. For sequence to sequence: `copy`, the source as the answer. For other tasks: none.

    Raises:
      TaskError: a split or an example that cannot be used.
    """
    kinds = [kind for kind in KINDS if not _refusal(task, kind)]
    if kinds == ["copy"] and "source" not in read(task.source, options.split, 1)[0].fields:
        return []
    return [baseline(task, kind, options, train_split) for kind in kinds]


def baseline(task: AnyTask, kind: str, options: Options, train_split: str = "train") -> Result:
    """The result of one baseline: `majority`, `tf_idf` or `copy`.

    Raises:
      TaskError: a baseline that the task has none of, a split or an example that cannot be used.
    """
    if refusal := _refusal(task, kind):
        raise TaskError(refusal)
    test = read(task.source, options.split, options.limit)
    if kind == "copy":
        if "source" not in test[0].fields:
            raise TaskError(f"{task.name} has no source to copy: choose another baseline")
        return _copied(task, test, options)
    train, classes = read(task.source, train_split), len(task.template.verbalizer)
    labels = []
    for example in train:
        with error_context(example):
            labels.append(task.template.label_index(example.label, example.fields))
    labels = np.array(labels, np.int32)
    if kind == "majority":
        rows = [np.bincount(labels, minlength=classes).tolist()] * len(test)
    else:
        rows = linear_scores([plain_text(task, e) for e in train], labels, [plain_text(task, e) for e in test], classes)
    greedy = (False,) * classes
    return result_of(task, test, [(row, greedy) for row in rows], options, f"{task.name}, {_NAMES.get(kind, kind)}")


def _refusal(task, kind):
    """Why the task has no such baseline; None where it has."""
    if kind not in KINDS:
        return f"no baseline is named {kind!r}; known: {', '.join(KINDS)}"
    if kind == "copy":
        return None if isinstance(task, Seq2SeqTask) else f"{task.name} has no source to copy: choose another baseline"
    if not isinstance(task, Task) or task.template.verbalizer is None or task.template.per_candidate:
        return f"{task.name} has no fixed classes, which the baseline {kind} needs: choose another one"
    return None


def plain_text(task: Task, example: Example) -> str:
    """The text of a task's prompt without its blank. Raises TaskError for an example that the prompt does not fit."""
    with error_context(example):
        parts = task.template.pattern(example.fields)
    return "".join(" " if isinstance(part, Mark) else part for part in parts)


def _copied(task, examples, options):
    texts, references = ([e.fields[name] for e in examples] for name in ("source", "target"))
    numbers = task.metric([as_lines(text) for text in texts], [as_lines(text) for text in references])
    rows = [
        {"id": e.id, "split": options.split, "prediction": text, "reference": reference}
        for e, text, reference in zip(examples, texts, references, strict=True)
    ]
    return Result(f"{task.name}, copy", options.split, len(examples), numbers, rows)


def linear_scores(
    train: Sequence[str], labels: Int[np.ndarray, "N"], test: Sequence[str], classes: int
) -> list[list[float]]:
    """Log-probabilities of the classes of every text in `test`, by logistic regression on the N texts in `train`.

    A feature is a word of at least two characters, or two adjacent words, in lower case. Its value is
    (1 + log count) · (1 + log((1 + N) / (1 + number of texts that have it))); the vector of a text has length 1.
    """
    counted = [collections.Counter(_features(text)) for text in train]
    texts_with = collections.Counter(itertools.chain.from_iterable(counted))
    number = {feature: i for i, feature in enumerate(texts_with)}
    rarity = np.array([1 + np.log((1 + len(train)) / (1 + n)) for n in texts_with.values()], np.float32)
    training = _vectors(counted, number, rarity)
    weights = _fit(*training, jnp.asarray(labels), len(number), classes)
    others = _vectors([collections.Counter(_features(text)) for text in test], number, rarity)
    return np.asarray(jax.nn.log_softmax(_logits(weights, *others))).tolist()


def _features(text):
    words = _WORD.findall(text.lower())
    return [*words, *itertools.pairwise(words)]


def _vectors(counted, number, rarity):
    """Sparse rows of one width: numbers of features, and their values; 0 where a text has fewer."""
    rows = [[(number[f], 1 + np.log(n)) for f, n in counts.items() if f in number] for counts in counted]
    width = max(1, *map(len, rows))
    index, values = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.float32)
    for i, row in enumerate(rows):
        if row:
            index[i, : len(row)], values[i, : len(row)] = zip(*row, strict=True)
    values *= rarity[index]
    return jnp.asarray(index), jnp.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9))


def _logits(weights: Any, index: Int[Array, "N W"], values: Float[Array, "N W"]) -> Float[Array, "N C"]:
    return jnp.einsum("nwc,nw->nc", weights["kernel"][index], values) + weights["bias"][None]


def _fit(index, values, labels, features, classes, steps=200):
    def loss(weights):
        losses = optax.softmax_cross_entropy_with_integer_labels(_logits(weights, index, values), labels)
        return losses.sum() + 0.5 * PENALTY * (weights["kernel"] ** 2).sum()

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    @jax.jit
    def step(weights, state):
        value, gradient = value_and_grad(weights, state=state)
        updates, state = optimizer.update(gradient, state, weights, value=value, grad=gradient, value_fn=loss)
        return optax.apply_updates(weights, updates), state, optax.tree.norm(gradient)

    weights = {"kernel": jnp.zeros((features, classes)), "bias": jnp.zeros(classes)}
    state = optimizer.init(weights)
    for _ in range(steps):
        weights, state, norm = step(weights, state)
        if norm < 1e-3 * len(labels) ** 0.5:
            break
    return weights
