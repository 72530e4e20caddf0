"""python -m glm_jax convert SRC DST --to {glm_jax,hub,megatron}: copies a model to another format."""

from collections.abc import Sequence

from glm_jax.cli.common import Parser, one_line_errors
from glm_jax.logs import log_to

FORMATS = ("glm_jax", "hub", "megatron", "adapter", "peft")

_PROG = "python -m glm_jax convert"
_EXAMPLES = (
    f"{_PROG} THUDM/glm-10b runs/glm-10b --to glm_jax",
    f"{_PROG} runs/quickstart exported --to megatron --model-parallel 2",
    f"{_PROG} runs/ag_news_lora merged --merge --to hub",
)


def main(arguments: Sequence[str]) -> None:
    """Reads SRC, writes DST, prints what was read."""
    parser = Parser(_PROG, "Copy a model to another format.", _EXAMPLES)
    parser.add_argument("source", help="a folder of the original, of the hub or of a run; or a hub id")
    parser.add_argument("destination", help="a new folder")
    parser.add_argument("--to", required=True, choices=FORMATS)
    parser.add_argument("--adapter", help="folder of an adapter of the source")
    parser.add_argument("--merge", action="store_true", help="merge the adapter, LoRA or (IA)³, into the kernels")
    parser.add_argument("--model-parallel", type=int, default=1, metavar="N", help="shards of the megatron layout")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: as in the source")
    parser.add_argument("--num-heads", type=int, help="attention heads, for a megatron source of an unpublished size")
    parser.add_argument("--gelu", choices=("tanh", "exact"), help="default: as the code that the source belongs to")
    parser.add_argument("--tokenizer", help="folder with a tokenizer's files, where the source has none")
    parser.add_argument("--no-fix-command-token", action="store_true", help="for the original's 10b-chinese")
    options = parser.parse_args(arguments)
    log_to()
    with one_line_errors():
        from glm_jax import interop

        interop.check_new(options.destination)  # reading a large model takes minutes
        run = interop.from_pretrained(
            options.source, dtype="float32", num_heads=options.num_heads, gelu=options.gelu,
            tokenizer=options.tokenizer, adapter=options.adapter,
            fix_command_token=not options.no_fix_command_token,
        )  # fmt: skip
        if options.merge:
            run = run.merge()
        print(run.report)
        notes = interop.export(
            run, options.destination, options.to, dtype=options.dtype, model_parallel=options.model_parallel
        )
        for note in notes:
            print(f"note: {note}")
        print(f"wrote {options.destination} ({options.to})")
