"""TPE with pruning against a grid: python -m tools searches --workdir=runs/searches

The task of configs/sweep/verses.py with 1,000 training examples: a grid of twelve trials, learning rate × batch size,
and three searches of half as many trials in the same space, whose rates may also lie between those of the grid. All are
sweeps in folders of their own; the same command goes on with those that were stopped. Prints what each found.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from glm_jax.cli.common import Parser, one_line_errors
from glm_jax.cli.configs import read_config
from glm_jax.logs import log_to
from glm_jax.sweeps.folder import PRUNED
from glm_jax.sweeps.run import sweep

RATES, BATCH_SIZES = (1e-4, 3e-4, 1e-3, 3e-3), (16, 32, 64)


def searches(file: str, count: int = 3) -> dict[str, ConfigDict]:
    """Name -> the config of a sweep: the grid, and `count` searches of half its trials."""
    configs = {}
    for name in ("grid", *(f"tpe_{seed}" for seed in range(count))):
        config = read_config(file)
        config.base.few_shot, config.base.eval_examples = 1000, 300
        config.seeds, config.ensembles = (0,), {}
        rates: Any = RATES
        if name != "grid":
            config.search, config.trials, config.prune = "tpe", len(RATES) * len(BATCH_SIZES) // 2, True
            config.search_seed = int(name.removeprefix("tpe_"))
            rates = {"low": min(RATES), "high": max(RATES), "log": True}
        prompt = next(iter(config.prompts))
        space = {"schedule.peak_lr": rates, "batch_size": BATCH_SIZES}
        config.candidates = ({"name": name, "prompt": prompt, "space": space},)
        configs[name] = config
    return configs


def run(configs: dict[str, ConfigDict], workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What each sweep found: the best validation score, its setting, and how many trials ended and were pruned."""
    rows = []
    for name, config in configs.items():
        results = sweep(config, workdir / name)
        (row,) = results["rows"]
        status = [trial["status"] for trial in results["trials"]]
        rows.append(
            {
                "search": name,
                "validation": row["validation"],
                "test": row["mean"],
                "setting": {key: row["changes"][key] for key in config.candidates[0]["space"]},
                "trials": len(status),
                "pruned": status.count(PRUNED),
                "seconds": sum(trial.get("training_seconds", 0.0) for trial in results["trials"]),
            }
        )
    return rows


def main(arguments: Sequence[str]) -> None:
    """The command."""
    prog = "python -m tools searches"
    examples = (f"{prog} --workdir=runs/searches", f"{prog} --workdir=runs/searches --count=1")
    parser = Parser(prog, "Search by TPE with pruning, beside a grid of twice as many trials.", examples)
    parser.add_argument("--config", default="configs/sweep/verses.py", help="a sweep whose first prompt is searched")
    parser.add_argument("--workdir", required=True, help="folder of the sweeps")
    parser.add_argument("--count", type=int, default=3, help="searches by TPE, with the search seeds 0, 1, …")
    options = parser.parse_args(arguments)
    log_to()
    with one_line_errors():
        for row in run(searches(options.config, options.count), pathlib.Path(options.workdir)):
            print(
                f"{row['search']:8} validation {row['validation']:.2f}, test {row['test']:.2f}; "
                f"{row['trials']} trials, {row['pruned']} pruned, {row['seconds']:.0f} s of training; {row['setting']}"
            )
