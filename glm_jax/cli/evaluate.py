"""python -m glm_jax evaluate --checkpoint runs/quickstart --tasks boolq,cb:4 --data FOLDER --out FOLDER"""

import argparse

from glm_jax.cli.common import log_to_stderr, one_line_errors


def main(arguments: list[str] | None = None) -> None:
    """Scores a checkpoint on tasks, prints a table, and writes it with all predictions."""
    parser = argparse.ArgumentParser(prog="python -m glm_jax evaluate", description="Score a GLM on tasks, zero-shot.")
    parser.add_argument("--checkpoint", required=True, help="a run folder, a hub folder, or the original's")
    names = "SuperGLUE's (boolq, boolq:4 for pattern 4), a Python file that defines `task`, gigaword, cnn_dm, xsum, "
    names += "cnn_dm_original, squad_generation, kjv_to_web, pairs:FOLDER, blank:RATIO, "
    names += "(lm, wikitext, lambada, choices):FILE"
    parser.add_argument("--tasks", required=True, help=f"comma-separated: {names}")
    parser.add_argument("--data", default="data", help="folder of SuperGLUE's folders, and of other tasks' files")
    parser.add_argument("--split", default="validation", help="train, validation or test")
    parser.add_argument("--out", help="folder for results.json and predictions-TASK.jsonl")
    parser.add_argument("--limit", type=int, help="this many examples of each task")
    parser.add_argument("--batch-size", type=int, default=16, help="rows of a forward pass; changes no result")
    parser.add_argument("--length", type=int, help="tokens of a window; by default what the model holds")
    parser.add_argument("--overlap", type=int, default=256, help="new tokens of a window; 0 for windows side by side")
    parser.add_argument("--unidirectional", action="store_true", help="the context is read left to right, too")
    parser.add_argument("--head", choices=("cloze", "classifier"), help="by default a classifier where there is one")
    parser.add_argument("--baselines", action="store_true", help="beside it what needs no model: docs/tasks.md")
    parser.add_argument("--tokenizer", help="folder of a tokenizer, for checkpoints without one")
    arguments = parser.parse_args(arguments)
    log_to_stderr()
    with one_line_errors():
        from glm_jax.evaluation import results as results_lib
        from glm_jax.evaluation.baselines import baselines
        from glm_jax.evaluation.run import LANGUAGE_TASKS, evaluate_named
        from glm_jax.interop import from_pretrained
        from glm_jax.tasks.task import find

        names = [name.strip() for name in arguments.tasks.split(",")]
        others = [name for name in names if name.partition(":")[0] not in LANGUAGE_TASKS]
        found = {name: find(name, arguments.data) for name in others}  # a name in error shows before the work starts
        model, params, tokenizer = opened = from_pretrained(
            arguments.checkpoint, dtype="float32", tokenizer=arguments.tokenizer
        )
        opened.require_tokenizer()
        options = results_lib.Options(
            split=arguments.split, limit=arguments.limit, batch_size=arguments.batch_size,
            length=arguments.length or model.config.max_position_embeddings,
            overlap=arguments.overlap or None, unidirectional=arguments.unidirectional,
            head=arguments.head or ("classifier" if "classifier" in params else "cloze"),
        )  # fmt: skip
        results = []
        for name in names:
            results.append(evaluate_named(model, params, tokenizer, name, options, arguments.data))
            if arguments.baselines and name in found:
                results += baselines(found[name], options)
            if arguments.out:  # after every task: a later one that fails takes nothing away
                results_lib.write_results(results, arguments.out, arguments.checkpoint)
    print(results_lib.results_table(results))
