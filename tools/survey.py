"""Plans many configs on every generation of TPU: python -m tools survey configs/pretrain/glm_*.py

Each config gets the smallest slice of a short list on which it fits. Every plan is a line of `--plans` as soon as it is
compiled; the same command resumes, and prints the table of docs/scale.md at the end.
"""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from glm_jax.cli.common import Parser, one_line_errors

# Slices that people rent, smallest first.
LADDERS = {
    "v5e": ("v5e:4x4", "v5e:8x8", "v5e:16x16"),
    "v6e": ("v6e:4x4", "v6e:8x8", "v6e:16x16"),
    "v4": ("v4:2x2x4", "v4:4x4x4", "v4:4x8x8"),
    "v5p": ("v5p:2x2x4", "v5p:4x4x4", "v5p:4x8x8"),
}


def read(path: str | os.PathLike, changes: Sequence[str] = ()) -> dict[tuple[str, str], dict[str, Any]]:
    """Plans with these changes, by (config's name, topology).

    The last of several counts, and a line that a kill cut short does not.
    """
    plans = {}
    file = pathlib.Path(path)
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            plan = json.loads(line)
        except ValueError:
            continue
        if plan["changes"] == list(changes):
            plans[plan["config"], plan["topology"]] = plan
    return plans


def survey(
    configs: Sequence[str], chips: Sequence[str], path: str | os.PathLike, changes: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yields the first fitting plan of each config on each chip, or the last one tried; appends new ones to `path`.

    `changes` are KEY=VALUE, replaced in every config. Each plan compiles in a process of its own. Raises ValueError for
    an unknown chip, RuntimeError with the plan's own words when one fails.
    """
    unknown = sorted(set(chips) - set(LADDERS))
    if unknown:
        raise ValueError(f"no slices are listed for {', '.join(unknown)}; there are {', '.join(LADDERS)}")
    plans = read(path, changes)
    _end_last_line(pathlib.Path(path))
    for config in configs:
        name = pathlib.Path(config).stem
        for chip in chips:
            for topology in LADDERS[chip]:
                plan = plans.get((name, topology))
                if plan is None:
                    plan = {"config": name, "changes": list(changes), **_plan(config, topology, changes)}
                    with open(path, "a") as file:
                        file.write(json.dumps(plan) + "\n")
                if plan["fits"]:
                    break
            yield plan


def _end_last_line(file):
    """A line that a kill cut short must not swallow the next."""
    if file.exists() and not file.read_text().endswith("\n"):
        with file.open("a") as lines:
            lines.write("\n")


def _plan(config, topology, changes):
    command = [sys.executable, "-m", "glm_jax", "plan", f"--config={config}", f"--topology={topology}"]
    command += ["--json", "--noremedies", *(f"--config.{change}" for change in changes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{config} on {topology}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


HEADER = (
    "| config | topology | mesh (data x fsdp) | state | temporaries | free | MFU at most | by | tokens/s at most "
    "| days at least | compiled in |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def row(plan: dict[str, Any]) -> str:
    """A line of the table: GB of a chip, raw tokens a second of all chips."""
    cells = [plan["config"], plan["topology"], "{data} x {fsdp}".format(**plan["mesh"])]
    cells += [f"{plan[key] / 1e9:.1f}" for key in ("argument_bytes", "temporary_bytes")]
    cells.append(f"{100 * plan['headroom']:.0f} %")
    if "mfu_bound" in plan:
        days = "?" if plan["days"] is None else f"{plan['days']:.1f}"
        cells += [f"{100 * plan['mfu_bound']:.0f} %", plan["limited_by"]]
        cells += [f"{plan['tokens_per_second_all_chips'] / 1e6:.2f} M", days]
    else:
        cells += ["does not fit", "", "", ""]
    return "| " + " | ".join([*cells, f"{plan['compile_seconds']:.0f} s"]) + " |"


def main(arguments: Sequence[str]) -> None:
    """Plans the configs named as arguments."""
    prog = "python -m tools survey"
    examples = (f"{prog} configs/pretrain/glm_*.py", f"{prog} configs/pretrain/glm_10b.py --chips v5p --change seed=1")
    parser = Parser(prog, "Plan many configs on every generation of TPU.", examples)
    parser.add_argument("configs", nargs="+", metavar="FILE", help="files of configs/")
    parser.add_argument("--plans", default="plans.jsonl", help="file of plans, one a line; default: plans.jsonl")
    parser.add_argument("--change", action="append", default=[], metavar="KEY=VALUE", help="replaced in every config")
    parser.add_argument("--chips", nargs="+", default=list(LADDERS), help="generations to plan for; default: all")
    options = parser.parse_args(arguments)
    with one_line_errors():
        print(HEADER)
        for plan in survey(options.configs, options.chips, options.plans, options.change):
            print(row(plan), flush=True)
