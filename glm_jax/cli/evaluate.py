"""python -m glm_jax evaluate --checkpoint runs/quickstart --tasks boolq,cb:4 --data FOLDER --out FOLDER"""

from collections.abc import Sequence

from glm_jax.cli.common import Parser, one_line_errors
from glm_jax.logs import log_to

_PROG = "python -m glm_jax evaluate"
_EXAMPLES = (
    f"{_PROG} --checkpoint runs/quickstart --tasks boolq,cb:4 --data data --out results",
    f"{_PROG} --checkpoint runs/quickstart --tasks lm:held_out.txt --overlap 0",
)


def main(arguments: Sequence[str]) -> None:
    """Scores a checkpoint on tasks, prints a table, and writes it with all predictions."""
    parser = Parser(_PROG, "Score a GLM on tasks.", _EXAMPLES)
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
    parser.add_argument(
        "--overlap", type=int, default=256, help="new tokens of a window; 0 for windows that do not overlap"
    )
    parser.add_argument("--unidirectional", action="store_true", help="read the context left to right, too")
    parser.add_argument(
        "--head", choices=("cloze", "classifier"), help="default: the classifier where the checkpoint has one"
    )
    parser.add_argument(
        "--baselines", action="store_true", help="also score baselines that need no model: docs/tasks.md"
    )
    parser.add_argument("--tokenizer", help="folder of a tokenizer, for checkpoints without one")
    parser.add_argument("--adapter", help="folder of an adapter that was trained on the checkpoint")
    options = parser.parse_args(arguments)
    log_to()
    with one_line_errors():
        from glm_jax.evaluation import results as results_lib
        from glm_jax.evaluation.baselines import baselines
        from glm_jax.evaluation.run import LANGUAGE_TASKS, evaluate_named
        from glm_jax.interop import from_pretrained
        from glm_jax.tasks.task import find

        names = [name.strip() for name in options.tasks.split(",")]
        others = [name for name in names if name.partition(":")[0] not in LANGUAGE_TASKS]
        tasks = {name: find(name, options.data) for name in others}  # an unknown name fails before the work starts
        model, params, tokenizer = loaded = from_pretrained(
            options.checkpoint, dtype="float32", tokenizer=options.tokenizer, adapter=options.adapter
        )
        loaded.require_tokenizer()
        settings = results_lib.Options(
            split=options.split, limit=options.limit, batch_size=options.batch_size,
            length=options.length or model.config.max_position_embeddings - (model.config.layout != "glm"),
            overlap=options.overlap or None, unidirectional=options.unidirectional,
            head=options.head or ("classifier" if "classifier" in params else "cloze"),
            pool=loaded.pool,
        )  # fmt: skip
        results = []
        for name in names:
            results.append(evaluate_named(model, params, tokenizer, name, settings, options.data))
            if options.baselines and name in tasks:
                results += baselines(tasks[name], settings)
            if options.out:  # after every task, in case a later one fails
                results_lib.write_results(results, options.out, options.checkpoint)
    print(results_lib.results_table(results))
