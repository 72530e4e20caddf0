"""A checkpoint on a task: `evaluate_task`, or `evaluate_named` for the name that a command gives it."""

from typing import Any

from glm_jax.decoding.steps import with_computed_prefix
from glm_jax.evaluation.classifier import evaluate_classifier
from glm_jax.evaluation.cloze import evaluate_cloze
from glm_jax.evaluation.generation import evaluate_generation
from glm_jax.evaluation.language_model import evaluate_choices, evaluate_lambada, evaluate_perplexity
from glm_jax.evaluation.results import Options, Result
from glm_jax.model.transformer import GLM
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.task import AnyTask, Task, find
from glm_jax.tokenizers.base import Tokenizer

LANGUAGE_TASKS = {  # KIND:FILE instead of the name of a task
    "lm": evaluate_perplexity,
    "wikitext": evaluate_perplexity,
    "lambada": evaluate_lambada,
    "choices": evaluate_choices,
}


def evaluate_named(
    model: GLM, params: Any, tokenizer: Tokenizer, name: str, options: Options, data_dir: str = "data"
) -> Result:
    """Evaluates the task that a command names.

    Args:
      name: see `tasks.task.find`; or lm:FILE, wikitext:FILE (perplexity of a text, which wikitext detokenizes),
        lambada:FILE and choices:FILE (JSON lines).
      data_dir: folder of the tasks' files.

    Raises:
      TaskError: a task, split or example that cannot be used.
    """
    kind, _, path = name.partition(":")
    if kind in LANGUAGE_TASKS:
        if not path:
            raise TaskError(f"{kind} needs a file: {kind}:FILE")
        longest = model.config.num_positions - (model.config.layout != "glm")  # there the start token takes one
        if options.length > longest:
            raise TaskError(f"length {options.length} is more than the model's {longest} positions: lower it")
        return LANGUAGE_TASKS[kind](model, params, tokenizer, name, path, options)
    task = find(name, data_dir)
    return evaluate_task(model, params, tokenizer, task, options, None if name.endswith(".py") else name)


def evaluate_task(
    model: GLM, params: Any, tokenizer: Tokenizer, task: AnyTask, options: Options, name: str | None = None
) -> Result:
    """Evaluates a task: compares candidates, or generates texts and compares them with references.

    Args:
      name: of the task in the result; its own by default.

    Raises:
      TaskError: a split or an example that cannot be used.
    """
    params = with_computed_prefix(model, params)
    if options.head == "classifier":
        return evaluate_classifier(model, params, tokenizer, task, options, name)
    evaluate = evaluate_cloze if isinstance(task, Task) else evaluate_generation
    return evaluate(model, params, tokenizer, task, options, name)
