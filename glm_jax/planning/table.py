"""A plan as text for people."""

from typing import Any

from glm_jax.planning.estimate import HEADROOM


def table(plan: dict[str, Any]) -> str:
    """The plan of a step, one fact per line; per chip and step unless it says otherwise."""
    rows = [
        _where(plan),
        (
            "step",
            f"{plan['batch_size']} rows in {plan['grad_accumulation_steps']} micro batch(es), remat {plan['remat']!r}",
        ),
        ("parameters", f"{plan['parameters'] / 1e6:,.1f} M in all"),
        _memory(plan, "state and rows"),
    ]
    if "flops_per_step" in plan:
        days = "depends on the corpus" if plan["days"] is None else f"{plan['days']:.2f} for {plan['steps']} steps"
        rows += [
            ("matmuls", "{flops_per_step:.4g} FLOP, {useful_flops_per_step:.4g} useful".format(**plan)),
            *_times(plan),
            ("MFU", f"at most {100 * plan['mfu_bound']:.1f} %, limited by {plan['limited_by']}"),
            ("tokens/s", f"at most {plan['tokens_per_second_all_chips']:,.0f} raw tokens on all chips"),
            ("days", f"at least {days}" if plan["days"] is not None else days),
        ]
    return _finished(rows, plan)


def decode_table(plan: dict[str, Any]) -> str:
    """The plan of decoding, one fact per line; per chip, and per token of every prompt unless it says otherwise."""
    rows = [
        _where(plan),
        ("batch", "{prompts} prompts of {context_length} tokens, {new_tokens} new ones each".format(**plan)),
        ("parameters", f"{plan['parameters'] / 1e6:,.1f} M in all, {plan['parameter_bytes'] / 1e9:.2f} GB on a chip"),
        ("cache", f"{plan['cache_bytes'] / 1e9:.2f} GB of keys and values"),
        _memory(plan, "parameters and caches"),
    ]
    if "flops_per_step" in plan:
        reading = plan["prefill"]["seconds_bound"]
        rows += [
            ("matmuls", "{flops_per_step:.4g} FLOP".format(**plan)),
            *_times(plan),
            ("limited by", f"{plan['limited_by']}: {1e3 * plan['seconds_per_step_bound']:.3g} ms at least"),
            ("prefill", f"at least {1e3 * reading:.3g} ms for all prompts"),
            ("tokens/s", f"at most {plan['tokens_per_second_all_chips']:,.0f} on all chips, prefill included"),
        ]
    return _finished(rows, plan)


def _where(plan):
    mesh = " x ".join(f"{axis}={size}" for axis, size in plan["mesh"].items())
    return "topology", f"{plan['topology']}, {plan['chips']} chips, mesh {mesh}"


def _memory(plan, held):
    parts = {key: plan[key] / 1e9 for key in ("argument_bytes", "temporary_bytes", "peak_bytes", "hbm_bytes")}
    text = "{argument_bytes:.2f} GB {held} + {temporary_bytes:.2f} GB temporaries: peak {peak_bytes:.2f} of "
    text += "{hbm_bytes:.2f} GB, headroom {free:.0f} %"
    return "memory", text.format(held=held, free=100 * plan["headroom"], **parts)


def _times(plan):
    moved = ", ".join(f"{kind} {size / 1e9:.3g} GB" for kind, size in plan["collectives"].items()) or "none"
    seconds = ", ".join(f"{name} {value:.4g} s" for name, value in plan["roofline_seconds"].items())
    traffic = f"{plan['hbm_bytes_per_step'] / 1e9:.4g} GB"
    return ("HBM traffic", traffic), ("collectives", moved), ("rooflines", seconds)


def _finished(rows, plan):
    rows.append(("compiled in", f"{plan['compile_seconds']:.0f} s"))
    lines = [f"{name:<12} {value}" for name, value in rows]
    if not plan["fits"]:
        lines.append(f"DOES NOT FIT: less than {100 * HEADROOM:.0f} % of HBM stays free")
        for tried in plan.get("remedies", []):
            verdict = "fits" if tried["fits"] else "does not fit"
            lines.append(f"  {tried['change']}: {verdict}, peak {tried['peak_bytes'] / 1e9:.2f} GB")
    return "\n".join(lines)
