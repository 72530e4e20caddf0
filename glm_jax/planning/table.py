"""A plan as text for people."""

from typing import Any

from glm_jax.planning.estimate import HEADROOM


def table(plan: dict[str, Any]) -> str:
    """One fact a line; per chip and step unless it says otherwise."""
    mesh = " x ".join(f"{axis}={size}" for axis, size in plan["mesh"].items())
    gigabytes = {key: plan[key] / 1e9 for key in ("argument_bytes", "temporary_bytes", "peak_bytes", "hbm_bytes")}
    rows = [
        ("topology", f"{plan['topology']}, {plan['chips']} chips, mesh {mesh}"),
        ("step", f"{plan['batch_size']} rows in {plan['accumulation']} micro batch(es), remat {plan['remat']!r}"),
        ("parameters", f"{plan['parameters'] / 1e6:,.1f} M in all"),
        (
            "memory",
            "{argument_bytes:.2f} GB state and rows + {temporary_bytes:.2f} GB temporaries: peak {peak_bytes:.2f} of "
            "{hbm_bytes:.2f} GB".format(**gigabytes)
            + f", headroom {100 * plan['headroom']:.0f} %",
        ),
    ]
    if "flops_per_step" in plan:
        seconds = plan["roofline_seconds"]
        moved = ", ".join(f"{kind} {size / 1e9:.3g} GB" for kind, size in plan["collectives"].items()) or "none"
        days = "depends on the corpus" if plan["days"] is None else f"{plan['days']:.2f} for {plan['steps']} steps"
        rows += [
            ("products", "{flops_per_step:.4g} FLOP, {useful_flops_per_step:.4g} useful".format(**plan)),
            ("HBM traffic", f"{plan['hbm_bytes_per_step'] / 1e9:.4g} GB"),
            ("collectives", moved),
            ("rooflines", ", ".join(f"{name} {value:.4g} s" for name, value in seconds.items())),
            ("MFU", f"at most {100 * plan['mfu_bound']:.1f} %, limited by {plan['limited_by']}"),
            ("tokens/s", f"at most {plan['tokens_per_second_all_chips']:,.0f} raw tokens on all chips"),
            ("days", f"at least {days}" if plan["days"] is not None else days),
        ]
    rows.append(("compiled in", f"{plan['compile_seconds']:.0f} s"))
    lines = [f"{name:<12} {value}" for name, value in rows]
    if not plan["fits"]:
        lines.append(f"DOES NOT FIT: less than {100 * HEADROOM:.0f} % of HBM stays free")
        for tried in plan.get("remedies", []):
            verdict = "fits" if tried["fits"] else "does not fit"
            lines.append(f"  {tried['change']}: {verdict}, peak {tried['peak_bytes'] / 1e9:.2f} GB")
    return "\n".join(lines)
