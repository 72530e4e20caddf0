"""Checkpoints with Orbax: one atomic directory a step, restored onto whatever mesh is current.

A step holds the training state, a checksum of it, the data position and the metrics; all of it or, to a reader, none.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from glm_jax.distributed import processes
from glm_jax.training.checksum import checksums, leaf_name

logger = logging.getLogger(__name__)

BEST_MODES = ("min", "max")


class CheckpointError(RuntimeError):
    """No checkpoint, or none that can be read."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `Checkpointer.restore` read, and from where; `str()` of it is the line to log."""

    step: int
    state: Any
    data_position: Any
    metrics: Mapping[str, float]
    path: str
    checksum: str  # of the parameters; the same on every mesh

    def __str__(self) -> str:
        return f"restored step {self.step} from {self.path} (parameter checksum {self.checksum})"


class Checkpointer:
    """Saves and restores training states in `directory`; every process calls every method.

    `save` returns once the arrays are copied to host memory; writing goes on in the background. An error there is
    raised by the next `save`, `wait` or `close`. Use as a context manager, or call `close`.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        max_to_keep: int = 3,
        keep_best: tuple[str, str] | None = None,
        read_only: bool = False,
    ):
        """Opens `directory`, creating it and removing unfinished steps unless `read_only`.

        Args:
          directory: local or a bucket (gs://…).
          max_to_keep: how many of the newest steps to keep.
          keep_best: (metric, "min" or "max"): the best step is kept as well, however old. Steps without that metric, or
            with one that is not finite, are never the best.
          read_only: for evaluation and inference, also while training goes on: nothing is created or removed.

        Raises:
          ValueError: max_to_keep < 1, unknown mode.
          CheckpointError: `read_only`, and the folder does not exist.
        """
        if max_to_keep < 1:
            raise ValueError(f"max_to_keep = {max_to_keep}: at least the newest checkpoint must be kept")
        if keep_best is not None and (len(keep_best) != 2 or keep_best[1] not in BEST_MODES):
            raise ValueError(f"keep_best = {keep_best!r}: must be (metric name, mode), mode one of {BEST_MODES}")
        self._keep_best, self._read_only = keep_best, read_only
        self._damaged: list[int] = []
        path = epath.Path(directory)
        self._directory = path if "://" in str(directory) else path.absolute()
        if read_only and not self._directory.is_dir():
            raise CheckpointError(f"{self._directory} does not exist")
        with _without_read_only_warnings():
            self._manager = _Manager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    best_fn=lambda metrics: 0.0,  # makes Orbax store metrics; _Preservation decides
                    preservation_policy=_Preservation(max_to_keep, self._best),
                    cleanup_tmp_directories=not read_only,
                    create=not read_only,
                    read_only=read_only,
                ),
                item_handlers={
                    "state": ocp.StandardCheckpointHandler(),
                    "checksum": ocp.JsonCheckpointHandler(),
                    "data": ocp.JsonCheckpointHandler(),
                },
            )

    def save(self, step: int, state: Any, data_position: Any, metrics: Mapping[str, Any] | None = None) -> None:
        """Starts writing a checkpoint; `state` may be donated or changed as soon as this returns.

        Args:
          step: optimizer steps completed.
          state: pytree of arrays. What is under the name `params` can be restored alone.
          data_position: anything JSON, the same on every process.
          metrics: numbers, for keep_best.

        Raises:
          ValueError: the step exists, data_position or metrics are not JSON, or this was opened read-only; nothing is
            written then.
          Exception: of an earlier save that failed in the background.
        """
        if self._read_only:
            raise ValueError(f"{self._directory} was opened read-only: open it without read_only to save")
        self.wait()
        try:
            data_position = json.loads(json.dumps(data_position, allow_nan=False))
            metrics = {key: float(value) for key, value in (metrics or {}).items()}
        except (TypeError, ValueError) as error:
            raise ValueError(f"checkpoint of step {step}: data position and metrics must be JSON: {error}") from error
        self._set_damaged_aside()
        if step in self.steps():
            raise ValueError(f"step {step} is already in {self._directory}: start from it, or use another directory")
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                checksum=ocp.args.JsonSave(checksums(state)),
                data=ocp.args.JsonSave(data_position),
            ),
            metrics=metrics,
            force=True,
        )

    def wait(self) -> None:
        """Returns when the last save is complete on disk; raises the error if it failed."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except BaseException:
            self._manager.reload()  # Orbax already counted the step that failed, and not those to be deleted for it
            raise

    def reached_preemption(self, step: int) -> bool:
        """Whether the scheduler announced that this job will be stopped, agreed upon by all processes: save now."""
        return self._manager.reached_preemption(step)

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        if self._read_only:
            self._manager.reload()  # the run that writes may have gone on
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step with the best `keep_best` metric, the newest of equals; None without any."""
        return self._best({step: self._metrics(step) for step in self.steps()})

    def restore(self, abstract_state: Any, step: int | str = "latest") -> Restored:
        """Reads a checkpoint onto the shardings of `abstract_state`, whatever mesh wrote it, and verifies its checksum.

        Args:
          abstract_state: `jax.ShapeDtypeStruct`s with a sharding (`sharding.with_shardings`), in the tree to return.
          step: a number, "latest" or "best". If the latest is damaged, the newest readable one before it is taken and
            the damage is logged as an error; the next `save` renames it to `<step>.damaged`. A step given
            by number, or the best one, is read or fails.

        Raises:
          CheckpointError: there is none, or none is readable.
          ValueError: the saved arrays have other names, shapes or dtypes; raised before any array is read.
        """
        return self._restore(abstract_state, step, params_only=False)

    def restore_params(self, abstract_params: Any, step: int | str = "latest") -> Restored:
        """As `restore`, for the parameters alone: `state` of the result is the parameter tree; the rest is not read."""
        return self._restore(abstract_params, step, params_only=True)

    def close(self) -> None:
        """Waits, raises the error of a failed save, and frees Orbax's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _restore(self, abstract: Any, step: int | str, params_only: bool) -> Restored:
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
            if getattr(leaf, "sharding", None) is None:
                raise ValueError(
                    f"{leaf_name(path)} of the abstract state has no sharding; see sharding.with_shardings"
                )
        self.wait()
        steps = self.steps()
        if step == "best":
            candidates = [best] if (best := self.best_step()) is not None else []
        elif step == "latest":
            candidates = steps[::-1]
        else:
            candidates = [step] if step in steps else []
        if not candidates:
            raise CheckpointError(f"no checkpoint for step {step!r} in {self._directory}; there are {steps or 'none'}")
        errors: list[str] = []
        for candidate in candidates:
            restored, error = self._try(abstract, candidate, params_only)
            if restored is not None:
                if errors:
                    self._damaged = candidates[: len(errors)]
                    logger.error("DAMAGED checkpoints passed over: %s; went back to %d", "; ".join(errors), candidate)
                logger.info("%s", str(restored))  # not the object: handlers may keep what they are given
                return restored
            errors.append(f"step {candidate}: {error}")
        raise CheckpointError(f"no readable checkpoint in {self._directory}: " + "; ".join(errors))

    def _try(self, abstract: Any, step: int, params_only: bool) -> tuple[Restored | None, str]:
        """A checkpoint, or why it cannot be read. Another structure is raised: older steps will have it, too."""
        restored, error = None, ""
        try:
            restored = self._read(abstract, step, params_only)
        except StructureError:
            raise
        except Exception as exception:  # Orbax and TensorStore raise many types for damaged files
            error = f"{type(exception).__name__}: {str(exception).splitlines()[0] if str(exception) else ''}"[:500]
        messages = processes.allgather_text(
            f"restoring step {step}", "" if restored is not None else error, processes.LONG_TIMEOUT
        )
        failed = [f"{text} on {processes.name(process)}" for process, text in enumerate(messages) if text]
        if failed:
            return None, error if len(messages) == 1 else "; ".join(failed)
        return restored, error

    def _read(self, abstract: Any, step: int, params_only: bool) -> Restored:
        path = self._directory / str(step)
        expected = {"params": abstract} if params_only else abstract
        _check_structure(ocp.PyTreeCheckpointHandler().metadata(path / "state").tree, expected, step, params_only)
        items = {"checksum": ocp.args.JsonRestore(), "data": ocp.args.JsonRestore()}
        if params_only:
            arguments = ocp.checkpoint_utils.construct_restore_args(expected)
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                state = reader.restore(
                    path / "state",
                    args=ocp.args.PyTreeRestore(item=expected, restore_args=arguments, partial_restore=True),
                )
            read = self._manager.restore(step, args=ocp.args.Composite(**items))
        else:
            items["state"] = ocp.args.StandardRestore(abstract)
            read = self._manager.restore(step, args=ocp.args.Composite(**items))
            state = read.state
        computed = checksums(state)
        for part in ("params",) if params_only else computed:
            if computed[part] != read.checksum[part]:
                raise CheckpointError(f"checksum of {part} is {computed[part]}, but {read.checksum[part]} was saved")
        state = state["params"] if params_only else state
        return Restored(
            step, state, read.data, self._metrics(step), str(path), computed.get("params", computed["state"])
        )

    def _metrics(self, step: int) -> Mapping[str, float]:
        return self._manager.metrics(step) or {}

    def _best(self, metrics: Mapping[int, Mapping[str, float] | None]) -> int | None:
        if self._keep_best is None:
            return None
        name, mode = self._keep_best
        sign = 1 if mode == "max" else -1
        values = {step: (saved or {}).get(name, math.nan) for step, saved in metrics.items()}
        scores = [(sign * value, step) for step, value in values.items() if math.isfinite(value)]
        return max(scores)[1] if scores else None

    def _set_damaged_aside(self) -> None:
        """Renames damaged steps, which else would count as the newest and make the rotation delete good ones."""
        if not self._damaged:
            return
        if jax.process_index() == 0:
            for step in self._damaged:
                target = self._directory / f"{step}.damaged"
                while target.exists():
                    target = target.parent / f"{target.name}.damaged"
                (self._directory / str(step)).rename(target)
        self._damaged = []
        processes.allgather_text("setting damaged checkpoints aside")
        self._manager.reload()


@contextlib.contextmanager
def _without_read_only_warnings():
    """Orbax warns that a folder which is opened read-only is read only."""

    def is_relevant(record):
        return not any(words in record.getMessage() for words in ("read_only=True", "is read only"))

    absl_logger = logging.getLogger("absl")
    absl_logger.addFilter(is_relevant)
    try:
        yield
    finally:
        absl_logger.removeFilter(is_relevant)


class StructureError(ValueError):
    """Saved and expected arrays differ in name, shape or dtype."""


class _Manager(ocp.CheckpointManager):
    """Orbax's manager reads the metrics of every step when it opens; a step whose metrics are damaged has none here."""

    def metrics(self, step: int) -> dict[str, float] | None:
        try:
            return {name: float(value) for name, value in (super().metrics(step) or {}).items()}
        except (ValueError, TypeError, AttributeError, OSError) as error:
            logger.error("DAMAGED metrics of step %d, which can be restored but is never the best: %s", step, error)
            return None


class _Preservation(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the newest steps and the best one. Orbax asks after each save and deletes the rest when it is complete."""

    def __init__(self, max_to_keep, best):
        self._max_to_keep, self._best = max_to_keep, best

    def should_preserve(self, checkpoints, *, context):
        del context
        newest = {info.step for info in sorted(checkpoints, key=lambda info: info.step)[-self._max_to_keep :]}
        best = self._best({info.step: info.metrics for info in checkpoints})
        return [info.step in newest or info.step == best for info in checkpoints]


def _check_structure(saved: Any, expected: Any, step: int, params_only: bool) -> None:
    """Orbax itself would cast dtypes silently, and say less."""

    def arrays(tree):
        described = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # typed keys are saved as their data
                leaf = jax.eval_shape(jax.random.key_data, leaf)
            described[leaf_name(path)] = f"{leaf.dtype}{list(leaf.shape)}"
        return described

    saved, expected = arrays(saved), arrays(expected)
    lines = [
        f"{name}: saved {saved.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
        for name in sorted(saved | expected)
        if saved.get(name) != expected.get(name) and (name.startswith("params/") or not params_only)
    ]
    if lines:
        more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
        raise StructureError(
            f"checkpoint of step {step} is of another model or optimizer: {'; '.join(lines[:5])}{more}; "
            "use the config that it was saved with" + ("" if params_only else ", or restore its parameters only")
        )
