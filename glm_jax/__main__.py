"""`python -m glm_jax VERB …`, also installed as `glm-jax VERB …`."""

import importlib
import sys

from glm_jax.cli.common import choose

VERBS = {
    "pretrain": "train a GLM on text by blank infilling",
    "finetune": "train a checkpoint on tasks",
    "sweep": "compare candidates, each with hyperparameters chosen for it",
    "report": "a sweep's results as a page for people",
    "evaluate": "score a checkpoint on tasks",
    "generate": "fill blanks, or continue texts",
    "convert": "copy a checkpoint to another format",
    "prepare": "tokenize a config's corpora beforehand",
    "plan": "memory and time of a step on a TPU topology, without the hardware",
    "benchmark": "measure one part on this machine",
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the verb that the first argument names with the others; by default those of the command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    summary = "GLM: language models trained by autoregressive blank infilling, in JAX."
    verb, rest = choose("python -m glm_jax", summary, VERBS, arguments)
    importlib.import_module(f"glm_jax.cli.{verb}").main(rest)


if __name__ == "__main__":
    main()
