"""python -m glm_jax plan --config=FILE --topology=v5p:4x4x4: what a run needs there, found without the hardware."""

import functools
import json
import os

from absl import app, flags
from ml_collections import config_flags

from glm_jax.cli.common import log_to_stderr, one_line_errors

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/; --config.KEY=VALUE replaces a key.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "Chip and shape of the slice, such as v5p:4x4x4.")
_SLICES = flags.DEFINE_integer("slices", 1, "Slices of that topology, connected by the data-centre network.")
_DECODE = flags.DEFINE_bool("decode", False, "Plan writing answers instead of training.")
_PROMPTS = flags.DEFINE_integer("prompts", 16, "With --decode: prompts at once.")
_CONTEXT = flags.DEFINE_integer("context", 512, "With --decode: tokens of a prompt.")
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 128, "With --decode: tokens written for each prompt.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")
_REMEDIES = flags.DEFINE_bool("remedies", True, "When it does not fit, try what would.")


def _run(arguments: list[str]) -> None:
    """Compiles the config's train step, or its decoder, for the topology and prints what it needs."""
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(arguments[1:])}")
    log_to_stderr()
    with one_line_errors():
        from glm_jax.planning import decode, estimate, remedies, table

        where = (_CONFIG.value, _TOPOLOGY.value, _SLICES.value)
        if _DECODE.value:
            asked = {"prompts": _PROMPTS.value, "context": _CONTEXT.value, "new_tokens": _NEW_TOKENS.value}
            plan = functools.partial(decode.plan, *where, **asked)
            mend, show = functools.partial(decode.remedies, *where, **asked), table.decode_table
        else:
            plan, mend = functools.partial(estimate.plan, *where), functools.partial(remedies.remedies, *where)
            show = table.table
        result = plan()
        if not result["fits"] and _REMEDIES.value:
            result["remedies"] = mend()
        print(json.dumps(result) if _JSON.value else show(result))


def main(arguments: list[str]) -> None:
    """The verb, with the arguments that follow it."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # the plan needs no accelerator, and takes none
    flags.mark_flags_as_required(["config", "topology"])
    app.run(_run, argv=["glm-jax plan", *arguments])
