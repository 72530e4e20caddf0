"""python -m glm_jax plan --config=FILE --topology=v5p:4x4x4: what a run needs on it, computed without the hardware."""

import functools
import json
import os
from collections.abc import Sequence

from glm_jax.cli.common import one_line_errors
from glm_jax.cli.configs import ConfigParser
from glm_jax.logs import log_to

_PROG = "python -m glm_jax plan"
_EXAMPLES = (
    f"{_PROG} --config=configs/pretrain/glm_10b.py --topology=v5p:4x4x4",
    f"{_PROG} --config=configs/pretrain/glm_10b.py --topology=v5e:2x4 --decode --prompts=32 --json",
    f"{_PROG} --config=configs/finetune/ag_news.py --topology=v5e:4x4 --size=10b --methods full lora p_tuning_v2",
)


def main(arguments: Sequence[str]) -> None:
    """Compiles the config's train step, or its decoder, for the topology and prints what it needs."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # the plan needs no accelerator, and takes none
    summary = "Compute what a training step, or decoding, needs on a TPU topology, without the hardware."
    parser = ConfigParser(_PROG, summary, _EXAMPLES, defaults=("pretrain", "finetune"), required=("topology",))
    add = parser.add_argument
    add("--topology", help="chip and shape of the slice, such as v5p:4x4x4; required")
    add("--slices", type=int, default=1, help="slices of that topology, connected by the data-centre network")
    add("--decode", action="store_true", help="plan decoding instead of training")
    add("--prompts", type=int, default=16, help="with --decode: prompts at once")
    add("--context", type=int, default=512, help="with --decode: tokens of a prompt")
    add("--new_tokens", type=int, default=128, help="with --decode: tokens generated for each prompt")
    add("--size", default="10b", help="fine-tuning: of the checkpoint that the plan stands for")
    add("--words", type=int, default=500, help="fine-tuning: of every field of an example")
    add("--methods", nargs="+", default=(), metavar="NAME", help="fine-tuning: compare these; default: the config's")
    add("--json", action="store_true", help="print one JSON object instead of a table")
    add("--noremedies", action="store_true", help="when it does not fit, do not try what would")
    options, config = parser.parse(arguments)
    log_to()
    with one_line_errors():
        from glm_jax.planning import decode, estimate, remedies, table

        where = (config, options.topology, options.slices)
        if config.kind == "finetune":
            from glm_jax.tuning.plan import plan as plan_methods
            from glm_jax.tuning.plan import plan_table

            plans = plan_methods(*where, size=options.size, words=options.words, methods=options.methods)
            print(json.dumps(plans) if options.json else plan_table(plans))
            return
        if options.decode:
            sizes = {"prompts": options.prompts, "context": options.context, "new_tokens": options.new_tokens}
            plan = functools.partial(decode.plan, *where, **sizes)
            find_remedies, show = functools.partial(decode.remedies, *where, **sizes), table.decode_table
        else:
            plan, find_remedies = functools.partial(estimate.plan, *where), functools.partial(remedies.remedies, *where)
            show = table.table
        result = plan()
        if not result["fits"] and not options.noremedies:
            result["remedies"] = find_remedies()
        print(json.dumps(result) if options.json else show(result))
