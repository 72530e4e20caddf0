"""The results of a sweep as one JSON value, results.json, from the files of its trials.

    {"metric": "accuracy", "task", "split", "examples", "validation_split", "selected_at", "tested_at",
     "rows": [{"name", "kind", "baseline", "changes", "validation", "trials", "mean", "deviation", "runs": [{"seed",
               "folder", "value", "numbers", "seconds"}], "parameters", "trained_parameters", "state_bytes", "error"}],
     "trials": [the trial.json of every trial], "config": …, "command": …, "environment": …}

A row's `kind` is trained, baseline or ensemble. Paths are relative to the folder of the sweep.
"""

import json
import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from glm_jax.evaluation.results import RESULTS, Options, result_of, write_results
from glm_jax.files import file_name, text_table
from glm_jax.sweeps.folder import COMPLETE, FAILED, SweepFolder, is_tested
from glm_jax.sweeps.space import Candidate, SweepError, Trial, trial_config
from glm_jax.tasks.examples import read
from glm_jax.tasks.task import Task
from glm_jax.tuning.task import tasks_of


def summarize(
    config: ConfigDict,
    folder: SweepFolder,
    candidates: Sequence[Candidate],
    selection: Mapping[str, Any],
) -> dict[str, Any]:
    """The results. Makes the ensembles, too.

    Raises SweepError when no test succeeded.
    """
    rows = []
    for candidate in candidates:
        if candidate.baseline is not None:
            rows.append(_baseline_row(folder, candidate))
        elif candidate.name in selection:
            rows.append(_trained_row(config, folder, candidate, selection[candidate.name]))
        else:
            failed = [r["error"] for r in folder.records() if r["candidate"] == candidate.name and "error" in r]
            rows.append({"name": candidate.name, "kind": "trained", "runs": [], "error": (failed or ["not run"])[0]})
    for name, members in config.ensembles.items():
        rows.append(_ensemble_row(config, folder, name, members, selection))
    tested = [row for row in rows if row["runs"]]
    if not tested:
        raise SweepError(f"no candidate has a test; {rows[0]['name']}: {rows[0].get('error')}")
    first = tested[0]["runs"][0]["results"]
    metric = first[0]["main_metric"]
    for row in rows:
        for run in row["runs"]:
            results = run.pop("results")
            run["numbers"] = {f"{r['task']}/{r['main_metric']}": r[r["main_metric"]] for r in results}
            run["value"] = results[0][results[0]["main_metric"]]
        values = [run["value"] for run in row["runs"]]
        row["mean"] = float(np.mean(values)) if values else None
        row["deviation"] = float(np.std(values, ddof=1)) if values[1:] else None
    return {
        "metric": metric,
        "task": first[0]["task"].partition(",")[0],
        "split": config.base.test_split,
        "examples": first[0]["examples"],
        "validation_split": config.base.validation_split,
        "selected_at": min((choice["selected_at"] for choice in selection.values()), default=None),
        "tested_at": time.time(),
        "rows": rows,
        "trials": folder.records(),
        "config": folder.read_config(),
        "environment": environment(),
    }


def _trained_row(config, folder, candidate, choice):
    runs, sizes, error = [], {}, None
    for seed in config.seeds:
        trial = Trial(candidate.name, {**choice["changes"], "seed": seed})
        record, path = folder.record(trial) or {}, folder.trial(trial)
        if record.get("status") != COMPLETE or not is_tested(path):
            error = f"seed {seed}: {record.get('error') or folder.test_error(path) or 'no test'}"
            continue
        trained = json.loads((path / "result.json").read_text())
        sizes = {key: trained.get(key) for key in ("parameters", "trained_parameters", "state_bytes")}
        runs.append({
            "seed": seed, "folder": str(path.relative_to(folder.path)), "results": _results(path / "report"),
            "validation": record["score"], "seconds": record["training_seconds"],
        })  # fmt: skip
    changes = {key: value for key, value in choice["changes"].items() if key != "seed"}
    row = {"name": candidate.name, "kind": "trained", "changes": changes, "runs": runs, **sizes}
    return row | {"validation": choice["validation"], "trials": choice["trials"], "error": error}


def _baseline_row(folder, candidate):
    path = folder.baseline(candidate.name)
    row = {"name": candidate.name, "kind": "baseline", "baseline": candidate.baseline, "runs": []}
    if not is_tested(path):
        return row | {"error": folder.test_error(path) or "no test"}
    validation = _results(path / "validation")[0]
    run = {"seed": None, "folder": str(path.relative_to(folder.path)), "results": _results(path / "report")}
    return row | {"validation": validation[validation["main_metric"]], "runs": [run]}


def _ensemble_row(config, folder, name, members, selection):
    """The mean of the members' log-probabilities over an example's candidates, for each seed."""
    row: dict[str, Any] = {"name": name, "kind": "ensemble", "members": list(members), "runs": []}
    if missing := [member for member in members if member not in selection]:
        return row | {"error": f"{missing[0]} has no trained model"}
    for seed in config.seeds:
        trials = [Trial(member, {**selection[member]["changes"], "seed": seed}) for member in members]
        runs = [folder.trial(trial) for trial in trials]
        if missing := [member for member, run in zip(members, runs, strict=True) if not is_tested(run)]:
            row["error"] = f"seed {seed}: {missing[0]} has no test"
            continue
        tasks = [tasks_of(trial_config(config, trial.changes))[0] for trial in trials]
        if wrong := _not_alike(members, tasks):
            return row | {"error": wrong}
        task, split = tasks[0], config.base.test_split
        members_scores = [_log_probabilities(run / "report", t.name) for run, t in zip(runs, tasks, strict=True)]
        scores = np.mean(members_scores, axis=0)
        pairs = [(values.tolist(), (False,) * len(values)) for values in scores]
        result = result_of(task, read(task.source, split), pairs, Options(split=split), task.name)
        out = folder.path / "ensembles" / file_name(name) / f"seed-{seed}"
        write_results([result], str(out / "report"), name)
        row["runs"].append(
            {"seed": seed, "folder": str(out.relative_to(folder.path)), "results": _results(out / "report")}
        )
    return row


def _not_alike(members, tasks):
    """Why the members cannot be averaged; None where they can."""
    for member, task in zip(members, tasks, strict=True):
        verbalizer = isinstance(task, Task) and task.template.verbalizer
        if not verbalizer:
            return f"{member} has no verbalizer, whose classes could be averaged"
        if list(verbalizer) != list(tasks[0].template.verbalizer):
            return f"{member} has the labels {', '.join(verbalizer)}, others {', '.join(tasks[0].template.verbalizer)}"
    return None


def _log_probabilities(folder, task):
    """[examples, classes] of a test's predictions, normalized over the classes."""
    scores = np.array([list(row["scores"].values()) for row in predictions(folder, task)], np.float64)
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


def predictions(folder, task: str) -> list[dict[str, Any]]:
    """The rows of predictions-TASK.jsonl in a folder of results."""
    lines = (folder / f"predictions-{file_name(task)}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _results(folder):
    return json.loads((folder / RESULTS).read_text())


def environment() -> dict[str, str]:
    """The versions and the machine that the numbers come from."""
    names = ("glm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "optuna", "torch")
    names += ("transformers",)
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "machine": platform.platform(), "processor": _processor(), **versions}


def _processor():
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def format_results(results: Mapping[str, Any]) -> str:
    """A table for people: each candidate's validation and test, its trained parameters and seconds."""
    tested = f"{results['split']} {results['metric']}"
    rows = [("candidate", "setting", "validation", tested, "seeds", "trained", "seconds")]
    for row in results["rows"]:
        runs = row["runs"]
        spread = f" ± {row['deviation']:.2f}" if row["deviation"] is not None else ""
        seconds = [run["seconds"] for run in runs if run.get("seconds") is not None]
        setting = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in row.get("changes", {}).items())
        rows.append((
            row["name"], setting, f"{row['validation']:.2f}" if row.get("validation") is not None else "",
            f"{row['mean']:.2f}{spread}" if runs else "failed", str(len(runs)),
            f"{row['trained_parameters']:,}" if row.get("trained_parameters") else "",
            f"{np.mean(seconds):.0f}" if seconds else "",
        ))  # fmt: skip
    lines = text_table(rows)
    failed = [f"{row['name']}: {row['error']}" for row in results["rows"] if row.get("error")]
    if count := sum(trial["status"] == FAILED for trial in results["trials"]):
        failed.append(f"{count} of {len(results['trials'])} trials failed; --status and the report name them")
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], *failed])
