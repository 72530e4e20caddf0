"""How far a sweep is, from its files alone: it may run on another machine."""

import collections
import json
import os
import pathlib

from glm_jax.files import text_table
from glm_jax.sweeps.folder import COMPLETE, FAILED, PRUNED, SweepFolder
from glm_jax.sweeps.space import describe_changes
from glm_jax.sweeps.summary import format_results
from glm_jax.training.metric_writer import read_metrics


def format_status(workdir: str | os.PathLike) -> str:
    """Lines for people: what has ended, what runs, and the best trial of each candidate.

    Raises SweepError for a folder that is no sweep's.
    """
    folder = SweepFolder(pathlib.Path(workdir))
    folder.read_config()
    if (results := folder.results()) is not None:
        return f"complete\n{format_results(results)}"
    records = folder.records()
    counts = collections.Counter(record["status"] for record in records)
    running = [path.parent for path in sorted(folder.path.glob("trials/*/lock.json"))]
    selection = folder.selection()
    stage = "searching" if selection is None else "training the other seeds, or testing"
    lines = [f"{stage}: " + ", ".join(f"{counts[key]} {key}" for key in (COMPLETE, FAILED, PRUNED) if counts[key])]
    for path in running:
        scored = [line for line in read_metrics(path / "metrics.jsonl") if "step" in line]
        step = scored[-1]["step"] if scored else 0
        config = json.loads((path / "config.json").read_text()) if (path / "config.json").exists() else {}
        lines.append(f"running: {path.name}, method {config.get('method')}, step {step}")
    best: dict[str, dict] = {}
    for record in records:
        if record["status"] == COMPLETE:
            name = record["candidate"]
            best[name] = max(best.get(name, record), record, key=lambda trial: trial["score"])
    table = [("candidate", "best validation", "setting")]
    table += [(name, f"{r['score']:.2f}", describe_changes(r["changes"])) for name, r in sorted(best.items())]
    failed = [
        f"failed: {r['candidate']}, {describe_changes(r['changes'])}: {r['error']}" for r in records if "error" in r
    ]
    return "\n".join([*lines, *(text_table(table) if best else []), *failed])
