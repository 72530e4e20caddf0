"""A trace of some steps, for xprof."""

import logging
import pathlib
import re
from typing import Any

import jax

logger = logging.getLogger(__name__)


class Profile:
    """Traces the steps that a text such as "steps=10:15" names, the last one included, into a folder; None: none."""

    def __init__(self, text: str | None, folder: pathlib.Path):
        """Raises ValueError when the text names no steps."""
        self.first, self.last, self._folder, self._running = 0, -1, folder, False
        if text is None:
            return
        match = re.fullmatch(r"steps=(\d+):(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"profile {text!r}: must be steps=FIRST:LAST, counted from 1, such as steps=10:15")
        self.first, self.last = int(match[1]), int(match[2])

    def check(self, start: int, total: int) -> None:
        """Raises ValueError when the steps from `start` + 1 to `total` do not hold those to be traced."""
        if self.last > total or 0 < self.first <= start:
            raise ValueError(
                f"profile steps={self.first}:{self.last}: this start of the run takes the steps {start + 1} to {total}"
            )

    def before(self, step: int) -> None:
        """Starts the trace, if it is time."""
        if step == self.first:
            self._running = True
            jax.profiler.start_trace(self._folder)

    def after(self, step: int, result: Any) -> None:
        """Ends the trace, if it is time, when `result` is there."""
        if step == self.last and self._running:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends a trace that runs."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            logger.info("trace of step %d to %d: xprof %s", self.first, self.last, self._folder)
