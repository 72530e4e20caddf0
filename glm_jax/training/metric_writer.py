"""Where a run's metrics go: a live line, metrics.jsonl, TensorBoard, samples.md and the loss curve."""

import json
import os
import pathlib
import re
import sys
from collections.abc import Mapping

from glm_jax.files import write_atomic

_SECTION = re.compile(r"(?m)^(?=## step \d+$)")  # of samples.md


class MetricWriter:
    """Writes metrics as they come. Use on process 0 only; every write is flushed.

    Resuming cuts what was logged after `start`, so that no step appears twice: neither its metrics nor its samples.
    """

    def __init__(self, directory: pathlib.Path, *, start: int, total: int, stream=None):
        from tensorboardX import SummaryWriter

        self._total = total
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._samples = directory / "samples.md"
        self._path = directory / "metrics.jsonl"
        kept = [line for line in read_metrics(self._path) if line["step"] <= start]
        write_atomic(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        if self._samples.exists():
            sections = _SECTION.split(self._samples.read_text())
            write_atomic(
                self._samples,
                "".join(s for s in sections if not s.startswith("## step ") or int(s.split()[2]) <= start),
            )
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=start + 1 if start else None)

    def metrics(self, step: int, values: Mapping[str, float | None]) -> None:
        """Adds the metrics of `step` to the files."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(name, value, step)

    def progress(self, step: int, values: Mapping[str, float]) -> None:
        """Shows step, loss, rate and time left: a line that is rewritten on a terminal, else one more line."""
        remaining = values["seconds_per_step"] * (self._total - step)
        text = (
            f"step {step}/{self._total}  loss {values['loss']:.3f}  {values['tokens_per_second']:,.0f} tokens/s  "
            f"lr {values['learning_rate']:.2e}  grad norm {values['grad_norm']:.2f}  left {duration(remaining)}"
        )
        self._stream.write(f"\r\033[K{text}" if self._live else text + "\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        """Prints lines that stay."""
        self._stream.write(f"\r\033[K{text}\n" if self._live else text + "\n")
        self._stream.flush()

    def sample(self, step: int, text: str) -> None:
        """Prints what the model wrote after `step` and adds it to samples.md."""
        self.say(text)
        with self._samples.open("a") as file:
            file.write(f"## step {step}\n\n{text}\n\n")

    def close(self) -> None:
        """Ends the live line and closes the files."""
        if self._live:
            self._stream.write("\n")
        self._file.close()
        self._board.close()


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def read_metrics(path: pathlib.Path) -> list[dict]:
    """The lines of a metrics.jsonl; a last line that a crash cut short is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def plot_loss(directory: pathlib.Path, baselines: Mapping[str, float]) -> pathlib.Path | None:
    """Draws loss.png from metrics.jsonl: training and validation loss in nats, baselines as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_metrics(directory / "metrics.jsonl")
    train = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    if not train:
        return None
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(*zip(*train, strict=True), linewidth=0.8, alpha=0.7, label="training")
    points = [(line["step"], line["validation_loss"]) for line in lines if "validation_loss" in line]
    if points:
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label="validation")
    for number, (name, value) in enumerate(baselines.items()):
        axes.axhline(
            value, linestyle="--", linewidth=1, color=f"C{7 + number}", label=f"{name.replace('_', ' ')}, same targets"
        )
    axes.set(xlabel="step", ylabel="nats per target")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path = directory / "loss.png"
    temporary = directory / "loss.tmp.png"
    figure.savefig(temporary, dpi=120)
    pyplot.close(figure)
    os.replace(temporary, path)
    return path
