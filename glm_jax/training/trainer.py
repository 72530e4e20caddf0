"""The training loop, read from top to bottom.

Where a run starts: at its own newest checkpoint, else from `init_from`, else from fresh parameters. A step is a pure
function of (state, rows) and rows follow from the step's number, so a run that was killed goes on bit for bit.
"""

import contextlib
import json
import logging
import os
import pathlib
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from glm_jax import data
from glm_jax.distributed import processes, sharding
from glm_jax.files import write_json_atomic
from glm_jax.model.transformer import parameter_count
from glm_jax.training import host_memory
from glm_jax.training.actions import Actions
from glm_jax.training.checkpoint import Checkpointer
from glm_jax.training.early_stopping import EarlyStopping
from glm_jax.training.metric_writer import MetricWriter, duration, plot_loss
from glm_jax.training.metrics import StepMetrics
from glm_jax.training.profiling import Profile
from glm_jax.training.setup import resolve_durations
from glm_jax.training.task import TrainingTask
from glm_jax.training.train_step import TrainState
from glm_jax.training.validation import BASELINES
from glm_jax.training.workdir import RunFolder, agreed_keys

logger = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM stopped the run after its state was saved: the same call goes on from there.

    As a KeyboardInterrupt it ends the cell of a notebook, and is not caught by `except Exception`. The verbs exit with
    `exit_code`, which asks a launcher to start the same command again.
    """

    exit_code = processes.RESTART


def train_task(
    task: TrainingTask,
    workdir: str | os.PathLike,
    *,
    on_log: Callable[[int, Mapping[str, Any]], None] | None = None,
    profile: str | None = None,
) -> dict[str, Any]:
    """Trains on `task` until its config's duration is over, in the run folder `workdir`; resumes what is there.

    A run that is complete returns its result at once. On many processes, call it on each after `processes.start`.

    Args:
      task: what to train on.
      workdir: a folder on a disk that all processes share.
      on_log: called on process 0 with (step, metrics) for every line of metrics.jsonl.
      profile: "steps=10:15" writes a trace of these steps.

    Returns:
      The final result, as in result.json.

    Raises:
      ValueError: a config, a corpus or a folder that cannot be used, or a folder in use (LockError); before anything is
        compiled. Nothing of a run that has begun is changed then.
      HostError: processes differ, or one is missing.
      NonFiniteError: training diverges.
      Interrupted: after Ctrl-C or SIGTERM, when the state is saved.
    """
    began = time.perf_counter()
    config, folder = task.config, RunFolder(pathlib.Path(workdir))
    primary = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        # ------------------------------------------------------------ config and folder
        processes.check_agreement({"config": agreed_keys(config), "workdir": str(workdir), "profile": profile})
        lock = None
        with processes.all_or_none("checking config and run folder"):
            mesh, rules = task.check()
            trace = Profile(profile, folder.path / "profile")
            if primary:
                lock = stack.enter_context(folder.lock())
                folder.claim(config)
            if not folder.begun:  # a run that has begun no longer needs the other one
                task.check_start()
        with processes.all_or_none("opening the run folder"):
            folder.check_shared()
        finished = json.dumps(folder.finished() if primary else None)
        if result := json.loads(processes.allgather_text("looking for a finished run", finished)[0]):
            logger.info("%s is complete: its result is returned", folder.path)
            return result
        if config.compilation_cache:
            jax.config.update("jax_compilation_cache_dir", str(config.compilation_cache))

        # ------------------------------------------------------------ data
        processes.primary_first("preparing the data", task.prepare)
        processes.check_agreement({"data": task.fingerprint()})

        # ------------------------------------------------------------ functions and state
        schedule = resolve_durations(config, rows=len(task.train_rows))
        setup = task.make_setup(schedule, mesh, rules)
        _log_sizes(task, setup, schedule)
        shard = sharding.process_shard(mesh, rules)
        batches = data.train_iterator(
            task.train_rows, batch_size=config.batch_size, seed=config.seed, process_index=shard[0],
            process_count=shard[1], workers=config.data.loader_workers,
        )  # fmt: skip
        stack.enter_context(contextlib.closing(batches))
        stack.enter_context(setup.activate())
        keep_best = task.best if config.keep_best else None
        checkpoints = stack.enter_context(
            Checkpointer(folder.checkpoints, max_to_keep=config.max_to_keep, keep_best=keep_best)
        )
        early_stopping = EarlyStopping(config.patience, task.best)
        if checkpoints.steps():
            restored = checkpoints.restore(setup.abstract_state.saved())
            state, start = TrainState(**restored.state), restored.step
            batches.set_state(restored.data_position)
            early_stopping.set_state(restored.data_position)
            folder.check_tokenizer(task.tokenizer, restored)
            folder.check_base(task.base_fingerprint, restored)
            logger.info("%s; data goes on at example %d", str(restored), restored.data_position["next_example"])
        else:
            state, start = setup.init(jax.random.key(config.seed)), 0
            state = state.replace(params=task.start_params(setup, state.params))
            logger.info("fresh start: %s", config.init_from or "new parameters")
        state = setup.completed(state, task.frozen_params(setup))
        trace.check(start, schedule.total)
        stack.callback(trace.close)
        writer = None
        if primary:  # what is in the folder is known to be this run's
            folder.write_config(config)
            task.tokenizer.save(folder.tokenizer)
            writer = MetricWriter(folder.path, start=start, total=schedule.total)
            stack.enter_context(contextlib.closing(writer))

        # ------------------------------------------------------------ the loop
        metrics = StepMetrics()
        actions = Actions(
            task, setup, schedule, shard, checkpoints=checkpoints, early_stopping=early_stopping, metrics=metrics,
            writer=writer, lock=lock, on_log=on_log,
        )  # fmt: skip
        periodic, pending = actions.periodic(), None
        stop = stack.enter_context(_StopSignals())
        step, total = start, start if early_stopping.over else schedule.total
        if start < total:
            logger.info("compiling the training step …")
        for step in range(start + 1, total + 1):
            waiting = time.perf_counter()
            rows = sharding.host_to_device(task.rows(next(batches)), mesh, rules)
            actions.data_position = batches.get_state()
            metrics.stalled += time.perf_counter() - waiting
            if primary:
                trace.before(step)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, values = setup.train_step(state, rows)
            trace.after(step, values)
            if pending is not None:
                metrics.add(*pending)  # fetched while this step runs
            pending = (step, values)
            due = [action for action in periodic if action.due(step, total)]
            if step == start + 1:
                jax.block_until_ready(values)
                logger.info("first step done %s after the start; it compiled", duration(time.perf_counter() - began))
                _ = actions.baselines
                host_memory.set_fragments_aside()
                if metrics.peak_flops:
                    metrics.flops_per_token = task.flops_per_token(setup, rows)
                if actions.log not in [action.run for action in due]:  # else its line says what compiling took
                    metrics.restart(untimed=1)

            stopping, last = stop.agreed(step), step == total
            if not (due or stopping or last):
                continue
            metrics.add(*pending)  # so nothing is saved or shown before its loss is known to be a number
            pending = None
            for action in due:
                action.run(step, state)
            last = last or early_stopping.over
            if stopping or last:
                actions.save(step, state)
            if last:
                break
            if stopping:
                checkpoints.wait()
                message = f"stopped after step {step}, which is saved: the same command goes on from there"
                if primary:
                    logger.warning("%s", message)
                raise Interrupted(message)

        # ------------------------------------------------------------ the result
        checkpoints.wait()
        baselines = actions.baselines
        validation = actions.validation_of(step) or task.evaluate(setup, setup.params_of(state), *shard)
        result = {
            "step": step,
            "parameters": parameter_count(setup.model.config),
            "trained_parameters": sum(leaf.size for leaf in jax.tree.leaves(setup.abstract_state.params)),
            "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(setup.abstract_state)),
            **validation,
            **{f"{name}_baseline": value for name, value in baselines.items()},
            "seconds": time.perf_counter() - began,
        }
        if writer:
            write_json_atomic(folder.path / "result.json", result)
            picture = plot_loss(folder.path, {name: baselines[name] for name in BASELINES if name in baselines})
            summary = task.describe(validation, baselines)
            writer.say(f"done: {summary}\nloss curve: {picture}\nrun folder: {folder.path}")
        return result


class _StopSignals:
    """Ctrl-C and SIGTERM ask for a stop after a step; a second Ctrl-C stops at once.

    On many processes JAX listens to SIGTERM, tells all of them, and has them agree on a step, without waiting for it.
    """

    def __enter__(self):
        self._asked, self._previous, self._many = False, {}, jax.process_count() > 1
        for number in (signal.SIGINT,) if self._many else (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # only the main thread may listen
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number, frame):
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        logger.warning("%s: saving after this step", signal.Signals(number).name)
        if self._many:
            os.kill(os.getpid(), signal.SIGTERM)

    def agreed(self, step: int) -> bool:
        """Whether to stop after this step, the same on every process."""
        if not self._many:
            return self._asked
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def __exit__(self, *error):
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _log_sizes(task, setup, schedule):
    config, rows, model = task.config, task.train_rows, setup.model.config
    logger.info(
        "model: %.2f M parameters, %d layers, width %d, %d heads, vocabulary %d, computes in %s; mesh %s",
        parameter_count(model) / 1e6, model.num_layers, model.hidden_size, model.num_heads, model.vocab_size,
        model.dtype, dict(setup.mesh.shape),
    )  # fmt: skip
    if setup.join is not None:
        trained, frozen = (sum(a.size for a in jax.tree.leaves(tree)) for tree in (
            setup.abstract_state.params, setup.abstract_state.frozen))  # fmt: skip
        logger.info("%d parameters train, %.2f %% of all", trained, 100 * trained / (trained + frozen))
    logger.info(
        "run: %d steps x %d rows x %d tokens = %.1f M tokens, %.2f epochs; warm-up %d steps, decay until %d",
        schedule.total, config.batch_size, rows.sequence_length,
        schedule.total * config.batch_size * rows.sequence_length / 1e6,
        schedule.total * config.batch_size / len(rows), schedule.warmup, schedule.decay,
    )  # fmt: skip
