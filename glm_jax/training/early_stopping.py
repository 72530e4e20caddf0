"""Early stopping: a run ends when its metric has not become better for so many evaluations."""

import math
from collections.abc import Mapping
from typing import Any


class EarlyStopping:
    """Counts evaluations without a better value; its state is saved in the checkpoint, beside the data position.

    Args:
      evaluations: how many without a better value end the run; None never does.
      best: (metric, "min" or "max").

    Raises ValueError for fewer than one evaluation.
    """

    def __init__(self, evaluations: int | None, best: tuple[str, str]):
        if evaluations is not None and evaluations < 1:
            raise ValueError(f"patience {evaluations}: give at least 1 evaluation, or None never to stop early")
        self._evaluations, (self._metric, self._mode) = evaluations, best
        self._value, self._since = None, 0

    @property
    def over(self) -> bool:
        """Whether the run should end."""
        return self._evaluations is not None and self._since >= self._evaluations

    def update(self, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of one more evaluation."""
        value = metrics[self._metric] * (1 if self._mode == "max" else -1)
        if math.isfinite(value) and (self._value is None or value > self._value):
            self._value, self._since = value, 0
        else:
            self._since += 1

    def get_state(self) -> dict[str, Any]:
        """For the checkpoint, as JSON; nothing where the run never stops early."""
        return {} if self._evaluations is None else {"patience": [self._value, self._since]}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from a state of `get_state`."""
        self._value, self._since = state.get("patience", (None, 0))
