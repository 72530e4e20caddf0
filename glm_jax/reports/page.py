"""report.md and report.html from the folder of a complete sweep."""

import json
import os
import pathlib
import time
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
import numpy as np

from glm_jax.config import finetune
from glm_jax.config import sweep as sweep_defaults
from glm_jax.files import compare_config, config_value, write_atomic
from glm_jax.reports import collect, figures
from glm_jax.reports.collect import Candidate, Sweep, read_sweep
from glm_jax.sweeps.folder import FAILED
from glm_jax.sweeps.space import describe_changes, trial_config
from glm_jax.tasks.examples import read
from glm_jax.tuning.task import tasks_of

WRONG = 12  # examples that all candidates get wrong
GENERATIONS = 8
_NONE = "\u2013"  # of a cell


def write_report(workdir: str | os.PathLike, out: str | os.PathLike | None = None) -> pathlib.Path:
    """Writes report.html and report.md of a sweep, into its folder or `out`; returns the path of the page.

    The page needs no network and no other file.
    Raises SweepError for a folder that is not that of a complete sweep.
    """
    sweep = read_sweep(pathlib.Path(workdir))
    folder = pathlib.Path(out if out is not None else workdir)
    folder.mkdir(parents=True, exist_ok=True)
    facts = _facts(sweep)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: resources.files("glm_jax.reports").joinpath(name).read_text()),
        autoescape=lambda name: name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "day": _day}
    page = folder / "report.html"
    write_atomic(folder / "report.md", environment.get_template("report.md").render(facts))
    write_atomic(page, environment.get_template("report.html").render(facts | {"figures": _figures(sweep)}))
    return page


def _facts(sweep: Sweep) -> dict[str, Any]:
    results = sweep.results
    best = sweep.candidates[0]
    texts = _texts(sweep)
    return {
        "title": f"{results['task']}: {len(sweep.candidates)} candidates compared",
        "results": results,
        "candidates": [_line(candidate, best) for candidate in sweep.candidates],
        "failed": sweep.failed,
        "failed_trials": [trial for trial in results["trials"] if trial["status"] == FAILED],
        "trials": len(results["trials"]),
        "conclusions": _conclusions(sweep),
        "prompts": _prompts(sweep),
        "wrong": [
            {"id": row["id"], "text": texts.get(row["id"], ""), "label": row["label"], "answers": answers}
            for row, answers in (collect.always_wrong(sweep, WRONG) if sweep.is_classification else [])
        ],
        "generations": _generations(sweep, texts),
        "command": results.get("command") or f"python -m glm_jax sweep --config=FILE --workdir={sweep.path}",
        "base": _changed(results["config"]["base"]),
        "describe": describe_changes,
    }


def _line(candidate: Candidate, best: Candidate) -> dict[str, Any]:
    row = candidate.row
    seconds = [run["seconds"] for run in row["runs"] if run.get("seconds") is not None]
    return {
        "name": candidate.name,
        "kind": row["kind"],
        "setting": describe_changes(row.get("changes", {})) if row["kind"] == "trained" else row["kind"],
        "changes": row.get("changes", {}),
        "validation": row.get("validation"),
        "mean": row["mean"],
        "deviation": row["deviation"],
        "seeds": len(row["runs"]),
        "interval": candidate.interval,
        "difference": candidate.difference,
        "best": candidate is best,
        "trained_parameters": row.get("trained_parameters"),
        "share": 100 * row["trained_parameters"] / row["parameters"] if row.get("trained_parameters") else None,
        "state_megabytes": row["state_bytes"] / 1e6 if row.get("state_bytes") else None,
        "seconds": float(np.mean(seconds)) if seconds else None,
        "trials": row.get("trials"),
        "runs": row["runs"],
        "error": row.get("error"),
    }


def _conclusions(sweep: Sweep) -> list[str]:
    """What the numbers allow to say, in sentences."""
    best, lines = sweep.candidates[0], []
    for candidate in sweep.candidates[1:]:
        if candidate.difference is None:
            continue
        mean, low, high = candidate.difference
        verdict = "the two cannot be told apart" if low <= 0 <= high else f"{best.name} is better"
        lines.append(
            f"{candidate.name} against {best.name}: {mean:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}: {verdict}."
        )
    return lines


def _prompts(sweep: Sweep) -> list[dict[str, Any]]:
    """Candidates that differ in their prompt alone, with the prompt's text."""
    prompts, rows = sweep.results["config"]["prompts"], []
    for candidate in sweep.candidates:
        name = candidate.row.get("changes", {}).get("prompt")
        if name is not None:
            prompt = prompts[name]
            text = (
                prompt if isinstance(prompt, str) else prompt.get("pattern") or json.dumps(prompt, ensure_ascii=False)
            )
            words = prompt.get("verbalizer") if isinstance(prompt, dict) else None
            words = ", ".join(str(word).strip() for word in words.values()) if words else "the task's"
            rows.append(
                {"candidate": candidate, "name": name, "text": text, "words": words, "mean": candidate.row["mean"]}
            )
    return rows if len(rows) > 1 else []


def _texts(sweep: Sweep) -> dict[Any, str]:
    """The test examples' texts by their ids, where the data can be read."""
    try:
        config = _sweep_config(sweep)
        changes = next((c.row["changes"] for c in sweep.candidates if c.row["kind"] == "trained"), {})
        task = tasks_of(trial_config(config, changes))[0]
        examples = read(task.source, sweep.results["split"])
    except (ValueError, OSError):
        return {}
    return {
        e.id: " | ".join(str(value) for name, value in e.fields.items() if isinstance(value, str) and name != "target")
        for e in examples
    }


def _sweep_config(sweep: Sweep):
    """The sweep's config, as far as trials need it."""
    saved = sweep.results["config"]
    config = sweep_defaults()
    with config.ignore_type(), config.unlocked():
        config.base.tasks = tuple(saved["base"]["tasks"])
        config.base.data.data_dir = saved["base"]["data"]["data_dir"]
        config.prompts = saved["prompts"]
    return config


def _generations(sweep: Sweep, texts) -> list[dict[str, Any]]:
    """Some references, evenly spread, with what each candidate wrote."""
    if sweep.is_classification:
        return []
    rows = sweep.candidates[0].predictions
    picked = np.linspace(0, len(rows) - 1, min(GENERATIONS, len(rows))).astype(int)
    return [
        {
            "id": rows[i]["id"], "text": texts.get(rows[i]["id"], ""),
            "reference": rows[i].get("reference", rows[i].get("label")),
            "answers": {c.name: c.predictions[i]["prediction"] for c in sweep.candidates},
        }
        for i in picked
    ]  # fmt: skip


def _figures(sweep: Sweep) -> dict[str, Any]:
    trained = [candidate.name for candidate in sweep.candidates if candidate.row["kind"] == "trained"]
    return {
        "headline": figures.headline(sweep),
        "parameters": figures.parameters(sweep),
        "curves": figures.learning_curves(sweep),
        "heat_maps": [(name, figure) for name in trained if (figure := figures.heat_map(sweep, name))],
        "sensitivity": [(name, found) for name in trained if (found := figures.sensitivity(sweep, name))],
        "confusion": [
            (candidate.name, figures.confusion(candidate))
            for candidate in sweep.candidates
            if sweep.is_classification and candidate.row["kind"] != "baseline"
        ],
        "calibration": figures.calibration(sweep) if sweep.is_classification else None,
    }


def _changed(base: dict[str, Any]) -> list[tuple[str, Any]]:
    """The keys of the base that are not fine-tuning's defaults."""
    return [(key, config_value(base, key)) for key in compare_config(finetune().to_dict(), base)]


def _number(value: float | None, digits: int = 2) -> str:
    return _NONE if value is None else f"{value:,.{digits}f}"


def _day(seconds: float | None) -> str:
    return _NONE if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def write_reports(workdirs: Sequence[str], out: str | None = None) -> list[pathlib.Path]:
    """`write_report` of several sweeps; with `out` each in a folder of its own there."""
    several = len(workdirs) > 1 and out is not None
    return [write_report(w, os.path.join(out, pathlib.Path(w).name) if several else out) for w in workdirs]
