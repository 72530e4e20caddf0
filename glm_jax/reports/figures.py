"""The figures of a report, as SVG texts: small, sharp in print, and without a network."""

import io
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot

from glm_jax.reports import collect
from glm_jax.reports.collect import Candidate, Sweep
from glm_jax.sweeps.space import value_text

_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "glm_jax", "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "figure.constrained_layout.use": True,
}  # fmt: skip
_MARKERS = "osD^vPX*<>"


def _draw(width: float, height: float, paint: Callable[[Any], None]) -> str:
    """An SVG element of this size in inches."""
    with pyplot.rc_context(_STYLE):
        figure, axes = pyplot.subplots(figsize=(width, height))
        paint(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    text = file.getvalue()
    size = rf'<svg viewBox="\1" style="max-width: {width:.2f}in" role="img">'
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', size, text[text.index("<svg") :], count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    # Elements of several figures on one page must not share names.
    prefix = f"f{next(_numbers)}-"
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', text)
    return re.sub(r'(url\(#|href="#)([^")]+)', rf"\1{prefix}\2", text)


_numbers = itertools.count()


def headline(sweep: Sweep) -> str:
    """Every candidate's test mean with its interval; the dots are seeds."""
    rows = sweep.candidates[::-1]

    def paint(axes):
        for y, candidate in enumerate(rows):
            color = _color(sweep, candidate.name)
            if candidate.interval:
                axes.plot(candidate.interval, (y, y), color=color, linewidth=2, alpha=0.6)
            values = [run["value"] for run in candidate.row["runs"]]
            axes.plot(values, [y] * len(values), ".", color=color, alpha=0.6)
            axes.plot(candidate.row["mean"], y, "o", color=color)
        axes.set_yticks(range(len(rows)), [candidate.name for candidate in rows])
        axes.set_xlabel(f"{sweep.results['split']} {sweep.results['metric']}; bar: 95 % interval")

    return _draw(7, 0.9 + 0.34 * len(rows), paint)


def parameters(sweep: Sweep) -> str | None:
    """Test score against the number of trained parameters; None where fewer than two candidates train any."""
    rows = [candidate for candidate in sweep.candidates if candidate.row.get("trained_parameters")]
    if len({candidate.row["trained_parameters"] for candidate in rows}) < 2:
        return None

    def paint(axes):
        for number, candidate in enumerate(rows):
            x, y = candidate.row["trained_parameters"], candidate.row["mean"]
            bars = [[y - candidate.interval[0]], [candidate.interval[1] - y]] if candidate.interval else None
            axes.errorbar(
                x, y, yerr=np.abs(bars) if bars else None, fmt=_MARKERS[number % len(_MARKERS)],
                color=_color(sweep, candidate.name), label=candidate.name, capsize=2,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set(xlabel="trained parameters", ylabel=f"{sweep.results['split']} {sweep.results['metric']}")
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))

    return _draw(7, 3.4, paint)


def learning_curves(sweep: Sweep) -> str | None:
    """Validation score by step, a line for each seed of the chosen settings."""
    curves = collect.learning_curves(sweep)
    if not any(len(points) > 1 for runs in curves.values() for points in runs):
        return None

    def paint(axes):
        for name, runs in curves.items():
            for number, points in enumerate(filter(None, runs)):
                label = name if number == 0 else None
                axes.plot(*zip(*points, strict=True), color=_color(sweep, name), alpha=0.8, linewidth=1.2, label=label)
        axes.set(xlabel="step", ylabel=f"{sweep.results['validation_split']} score")
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))

    return _draw(7, 3.4, paint)


def sensitivity(sweep: Sweep, candidate: str) -> list[tuple[str, str]]:
    """(hyperparameter, figure) of every one that was searched: all finished trials by its value."""
    figures = []
    for key, by_value in collect.sensitivity(sweep, candidate).items():

        def paint(axes, by_value=by_value, key=key):
            for x, scores in enumerate(by_value.values()):
                axes.plot([x] * len(scores), scores, "o", color=_color(sweep, candidate), alpha=0.5, markersize=4)
            best = [max(scores) for scores in by_value.values()]
            axes.plot(range(len(best)), best, "-", color=_color(sweep, candidate), linewidth=1, label="best")
            axes.set_xticks(range(len(by_value)), list(by_value), rotation=30 if len(by_value) > 4 else 0)
            axes.set(xlabel=key, ylabel="validation score")

        figures.append((key, _draw(3.4, 2.5, paint)))
    return figures


def heat_map(sweep: Sweep, candidate: str) -> str | None:
    """The best validation score by two hyperparameters: learning rate and batch size, or those with most values."""
    found = collect.sensitivity(sweep, candidate)
    wanted = [key for key in ("schedule.peak_lr", "batch_size") if key in found]
    others = sorted((key for key in found if key not in wanted), key=lambda key: -len(found[key]))
    pair = (wanted + others)[:2]
    if len(pair) < 2:
        return None
    first, second = (list(found[key]) for key in pair)
    scores = np.full((len(second), len(first)), np.nan)
    for trial in collect.searched(sweep, candidate):
        x, y = (axis.index(value_text(trial["changes"][key])) for key, axis in zip(pair, (first, second), strict=True))
        scores[y, x] = np.nanmax([scores[y, x], trial["score"]])

    def paint(axes):
        axes.grid(False)
        axes.imshow(scores, aspect="auto", cmap="viridis")
        middle = (np.nanmin(scores) + np.nanmax(scores)) / 2
        for (y, x), value in np.ndenumerate(scores):
            if not np.isnan(value):
                axes.text(x, y, f"{value:.1f}", ha="center", va="center", color="white" if value < middle else "black")
        axes.set_xticks(range(len(first)), first)
        axes.set_yticks(range(len(second)), second)
        axes.set(xlabel=pair[0], ylabel=pair[1])

    return _draw(1.8 + 0.8 * len(first), 1.2 + 0.45 * len(second), paint)


def confusion(candidate: Candidate) -> str:
    """How often each label was answered by each, by the first seed."""
    labels, counts = collect.confusion(candidate)

    def paint(axes):
        axes.grid(False)
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        if len(labels) <= 12:
            for (y, x), value in np.ndenumerate(counts):
                axes.text(x, y, str(value), ha="center", va="center", color="white" if shares[y, x] > 0.5 else "black")
        axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right")
        axes.set_yticks(range(len(labels)), labels)
        axes.set(xlabel="answer", ylabel="label")

    side = 1.6 + 0.42 * min(len(labels), 12)
    return _draw(side + 0.6, side, paint)


def calibration(sweep: Sweep) -> str | None:
    """Accuracy by the probability of the answer, of every candidate that has probabilities."""
    found = {candidate.name: collect.calibration(candidate) for candidate in sweep.candidates}
    found = {name: value for name, value in found.items() if value is not None}
    if not found:
        return None

    def paint(axes):
        axes.plot((0, 1), (0, 1), color="gray", linewidth=1, linestyle="--")
        for name, (error, points) in found.items():
            x, y, _ = zip(*points, strict=True)
            axes.plot(x, y, "o-", markersize=3, color=_color(sweep, name), label=f"{name}, error {error:.3f}")
        axes.set(xlabel="probability of the answer", ylabel="share of right answers")
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))

    return _draw(7, 3.4, paint)


def _color(sweep: Sweep, name: str) -> Any:
    names: Sequence[str] = [row["name"] for row in sweep.results["rows"]]
    return matplotlib.colormaps["tab10" if len(names) <= 10 else "tab20"](names.index(name))
