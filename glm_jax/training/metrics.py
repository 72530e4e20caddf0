"""What is measured while a run trains: loss, speed, use of the chips, memory. A step pays two clock readings for it."""

import contextlib
import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from glm_jax.corruption.config import OBJECTIVES
from glm_jax.distributed.accelerators import accelerator_of

_PERCENTILES = (50, 95, 99)
_COMPILED = "/jax/core/compile/backend_compile_duration"
_compilations = 0


class NonFiniteError(FloatingPointError):
    """The loss or the gradient is no longer a number."""


class StepMetrics:
    """Loss, speed and use of the chips since the last log line.

    Attributes:
      flops_per_token: `flops.useful_flops` of a raw token, once it is known; None leaves MFU None.
      stalled: seconds of waiting for the next rows.
    """

    def __init__(self):
        _listen()
        self.flops_per_token: float | None = None
        chip = accelerator_of(jax.devices()[0])
        self.peak_flops = chip and chip.flops * jax.device_count()
        self.restart()

    def restart(self, untimed: int = 0) -> None:
        """Forgets what was measured; the clock starts now. The next `untimed` steps are over: their loss counts."""
        self._metrics, self._times, self._untimed = [], [], untimed
        self._began = self._last = time.perf_counter()
        self.stalled, self._excluded = 0.0, 0.0

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        """Waits for the metrics of a step, as `train_step` returns them.

        Raises:
          NonFiniteError: loss or gradient norm is not a number.
        """
        metrics = jax.device_get(metrics)
        for name in ("loss", "grad_norm"):
            if not np.isfinite(metrics[name]):
                raise NonFiniteError(
                    f"{name} is {metrics[name]} at step {step}. The last checkpoint is intact; this step is not saved. "
                    "Start another workdir with init_from set to this run, and a lower schedule.peak_lr, a longer "
                    "warm-up or a smaller max_grad_norm"
                )
        self._metrics.append(metrics)
        now = time.perf_counter()
        self._times.append(now - self._last)  # steps follow each other on the device, so this is what one takes
        self._last = now

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Takes the time of a block, such as an evaluation, out of all rates."""
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self._excluded += seconds
        self._last += seconds

    def close(self) -> dict[str, float | None]:
        """The metrics of the steps added, and a fresh start. `mfu` is None on a chip that `ACCELERATORS` lacks.

        MFU is useful floating-point operations a second (`flops.useful_flops` of the first batch, by raw token) over
        the bfloat16 peak of all chips, whatever type the run computes in.
        """
        seconds = max(time.perf_counter() - self._began - self._excluded, 1e-9)
        times, timed = self._times[self._untimed :], self._metrics[self._untimed :]
        last = self._metrics[-1]
        sums = [m["sums"] for m in self._metrics]
        loss, weight = (functools.reduce(np.add, [getattr(s, name) for s in sums]) for name in ("loss", "weight"))
        raw = sum(float(m["sums"].raw_tokens) for m in timed)
        values: dict[str, float | None] = {
            "loss": float(loss.sum() / weight.sum()),
            "grad_norm": float(last["grad_norm"]),
            "learning_rate": float(last["learning_rate"]),
            "tokens_per_second": raw / seconds,
            "seconds_per_step": seconds / max(len(timed), 1),
            **{f"step_seconds_p{p}": float(np.percentile(times, p)) for p in _PERCENTILES},
            "input_stall": self.stalled / seconds,
            "mfu": None,
            "targets_per_token": float(weight.sum() / max(sum(float(s.raw_tokens) for s in sums), 1)),
            "compilations": _compilations,
        }
        if self.peak_flops and self.flops_per_token:
            values["mfu"] = self.flops_per_token * raw / seconds / self.peak_flops
        if memory := jax.local_devices()[0].memory_stats():  # a CPU has none
            values["peak_memory_bytes"] = memory["peak_bytes_in_use"]
        values |= {f"{name}_loss": float(part / count) for name, part, count in by_objective(loss, weight)}
        self.restart()
        return values


def by_objective(loss: Any, weight: Any) -> list[tuple[str, Any, Any]]:
    """(Name, loss, weight) of each objective of blank infilling in summed `LossSums`, where there are several."""
    used = [] if not np.ndim(weight) else np.flatnonzero(weight.sum(1))
    return [(OBJECTIVES[i], loss[i].sum(), weight[i].sum()) for i in used] if len(used) > 1 else []


def _listen() -> None:
    """Counts, from now on, the programs that XLA compiles or takes from its cache."""
    global _listening
    if not _listening:
        jax.monitoring.register_event_duration_secs_listener(_count)
        _listening = True


_listening = False


def _count(event: str, duration: float, **more) -> None:
    global _compilations
    _compilations += event == _COMPILED
