"""python -m glm_jax generate --checkpoint runs/quickstart --prompt "And God said, [MASK]." """

import json
import pathlib
import sys
from collections.abc import Sequence

from glm_jax.cli.common import Parser, one_line_errors
from glm_jax.logs import log_to
from glm_jax.training.host_memory import keep_freed_memory

_PROG = "python -m glm_jax generate"
_EXAMPLES = (
    f'{_PROG} --checkpoint runs/quickstart --prompt "And God said, [MASK]."',
    f"{_PROG} --checkpoint runs/quickstart --prompts prompts.jsonl --output answers.jsonl --top-p 0.9 --temperature 1",
)


def _parser() -> Parser:
    parser = Parser(_PROG, "Fill blanks, or continue texts.", _EXAMPLES)
    add = parser.add_argument
    add("--checkpoint", required=True, help="a run (its --workdir), a released or converted checkpoint, or a hub id")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", action="append", help="text with [MASK], or to be continued; may be repeated")
    source.add_argument("--prompts", metavar="FILE", help='jsonl, {"prompt": …} a line; needs --output')
    source.add_argument("--interactive", action="store_true", help="type prompts; tokens appear as they are generated")
    add("--output", help="jsonl; prompts that it already answers are skipped")
    add("--step", help="of a run: a number, 'latest' or 'best'; default: best of fine-tuning, latest of pretraining")
    add("--tokenizer", help="folder of a tokenizer, for a checkpoint that has none")
    add("--adapter", help="folder of an adapter that was trained on the checkpoint")
    add("--dtype", help="compute dtype, such as bfloat16; by default the run's, float32 for others")
    add("--max-new-tokens", type=int, default=64, help="most tokens of an answer")
    add("--order", default="left-to-right", help="of filling: right-to-left, random, or numbers such as 2,0,1")
    add("--unidirectional", action="store_true", help="continue texts from left to right only")
    add("--num-answers", type=int, default=1, help="samples, or hypotheses of a beam search")
    add("--temperature", type=float, default=0.0, help="0 takes the most probable token")
    add("--top-k", type=int, default=0, help="sample among the k most probable tokens")
    add("--top-p", type=float, default=1.0, help="sample among the tokens that together reach p")
    add("--num-beams", type=int, default=1, help="beam search")
    add("--length-penalty", type=float, default=0.0, help="a beam's score is divided by its length to this power")
    add("--min-new-tokens", type=int, default=0, help="fewest tokens of an answer")
    add("--no-repeat-ngram", type=int, default=0, help="generate no n-gram of this size twice; 0: allow")
    add("--seed", type=int, default=0, help="of sampling")
    add("--batch-size", type=int, default=16, help="prompts at once")
    add(
        "--history-tokens", type=int, default=256, help="of an interactive session, prepended to a new line; 0 for none"
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    """Answers prompts and prints or writes the filled texts."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    not_sampling = ("checkpoint", "prompt", "prompts", "interactive", "output", "step", "tokenizer", "dtype", "adapter")
    options = {name: value for name, value in given.items() if name not in not_sampling}
    if bool(given["prompts"]) != bool(given["output"]):
        parser.error("--prompts FILE and --output FILE belong together")
    if given["prompts"] and not pathlib.Path(given["prompts"]).is_file():
        parser.error(f"--prompts {given['prompts']}: there is no such file")
    order = options["order"]
    if order not in ("left-to-right", "right-to-left", "random"):
        try:
            options["order"] = tuple(map(int, order.split(",")))
        except ValueError:
            parser.error(f"--order {order!r}: give left-to-right, right-to-left, random, or numbers such as 2,0,1")
    if given["interactive"] and given["num_answers"] != 1:
        parser.error(f"--num-answers {given['num_answers']}: a conversation has one answer a line; leave it out")
    log_to()
    with one_line_errors():
        from glm_jax.decoding import batch_inference
        from glm_jax.interop import from_pretrained

        keep_freed_memory()
        opening = {name: given[name] for name in ("step", "dtype", "tokenizer", "adapter")}
        decoder = from_pretrained(given["checkpoint"], **opening).decoder
        history = options.pop("history_tokens")
        if given["prompts"]:
            batch_inference.answer_file(decoder, given["prompts"], given["output"], **options)
        elif given["interactive"]:
            for name in ("num_answers", "batch_size"):
                options.pop(name)
            show = lambda text: print(text, end="", flush=True)  # noqa: E731
            batch_inference.chat(decoder, sys.stdin, show, history_tokens=history, **options)
        else:
            for filled in batch_inference.fill_or_continue(decoder, given["prompt"], **options):
                print(filled.text)
                for number, (answer, score) in enumerate(zip(filled.answers, filled.scores, strict=True), start=1):
                    print(f"  blank {number} ({score:.2f}): {answer.strip()}")
                for other in filled.alternatives:
                    print("  or", json.dumps(other.answers, ensure_ascii=False), f"({sum(other.scores):.2f})")
