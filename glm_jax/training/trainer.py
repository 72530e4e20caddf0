"""The training loop, read from top to bottom.

Where a run starts: at its own newest checkpoint, else from `init_from`, else from fresh parameters. A step is a pure
function of (state, rows) and rows follow from the step's number, so a run that was killed goes on bit for bit.
"""

import contextlib
import functools
import logging
import os
import pathlib
import signal
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from glm_jax import data
from glm_jax.distributed import processes, sharding
from glm_jax.files import write_json_atomic
from glm_jax.model.transformer import parameter_count
from glm_jax.training import host_memory, setup
from glm_jax.training.checkpoint import Checkpointer
from glm_jax.training.durations import due
from glm_jax.training.early_stopping import EarlyStopping
from glm_jax.training.metric_writer import MetricWriter, duration, plot_loss
from glm_jax.training.metrics import StepMetrics
from glm_jax.training.pretraining import PretrainingTask
from glm_jax.training.profiling import Profile
from glm_jax.training.validation import BASELINES
from glm_jax.training.workdir import RunFolder, agreed_keys

logger = logging.getLogger(__name__)


class Interrupted(SystemExit):
    """The run was asked to stop, and saved its state first. Its exit code asks a launcher to start it again."""

    def __init__(self, message: str):
        super().__init__(processes.RESTART)
        self._message = message

    def __str__(self) -> str:
        return self._message


def train(
    config: ConfigDict, workdir: str, subject: Any = PretrainingTask, *, profile: str | None = None
) -> dict[str, Any]:
    """Trains until the config's duration is over, in the run folder `workdir`; resumes what it finds there.

    `subject` is what the run learns from: a class with the methods of `text.Text`. `profile` = "steps=10:15" writes a
    trace of these steps. Returns the final result, as in result.json. On many hosts, call it on each after
    `hosts.start`.

    Raises ValueError for a config, a corpus or a folder that cannot be used, before anything is compiled; HostError
    when hosts differ or are missing; NonFiniteError when training diverges; Interrupted after Ctrl-C or SIGTERM.
    """
    began = time.perf_counter()
    leader = jax.process_index() == 0

    # ---------------------------------------------------------------- what is wrong shows before the work starts
    processes.check_agreement({"config": agreed_keys(config), "workdir": str(workdir), "profile": profile})
    folder = RunFolder(pathlib.Path(workdir))
    with processes.all_or_none("checking config and run folder"):
        mesh, rules = subject.check(config)
        trace = Profile(profile, folder.path / "profile")
        if leader:
            folder.claim(config)
        if not folder.begun:  # a run that has begun no longer needs the other one
            subject.check_init_from(config.init_from)
    with processes.all_or_none("opening the run folder"):
        folder.check_shared()
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", str(config.compilation_cache))

    # ---------------------------------------------------------------- data
    subject = processes.primary_first("preparing the data", functools.partial(subject, config))
    processes.check_agreement({"data": subject.fingerprint()})
    if leader:
        subject.tokenizer.save(folder.tokenizer)

    # ---------------------------------------------------------------- program and state
    schedule = setup.resolve_durations(config, rows=len(subject.train_rows))
    run = subject.build(schedule, mesh, rules)
    _say_what_runs(config, run, schedule, subject.train_rows)
    process_index, process_count = sharding.process_shard(mesh, rules)
    batches = data.train_iterator(
        subject.train_rows, batch_size=config.batch_size, seed=config.seed, process_index=process_index,
        process_count=process_count, workers=config.data.get("loader_workers", 0),
    )  # fmt: skip

    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(batches))
        stack.enter_context(run.activate())
        keep_best = subject.best if config.keep_best else None
        checkpoints = stack.enter_context(
            Checkpointer(folder.checkpoints, max_to_keep=config.max_to_keep, keep_best=keep_best)
        )
        patience = EarlyStopping(config.get("patience"), subject.best)
        if checkpoints.steps():
            restored = checkpoints.restore(run.abstract_state)
            state, start = restored.state, restored.step
            batches.set_state(restored.data_position)
            patience.set_state(restored.data_position)
            logger.info("%s; data goes on at example %d", restored, restored.data_position["next_example"])
        else:
            state, start = run.init(jax.random.key(config.seed)), 0
            if config.init_from is not None:
                state = state.replace(params=subject.init_params(run, state.params))
            logger.info("fresh start: %s", config.init_from or "new parameters")
        trace.check(start, schedule.total)
        stack.callback(trace.close)
        report = None
        if leader:
            report = stack.enter_context(
                contextlib.closing(MetricWriter(folder.path, start=start, total=schedule.total))
            )

        @functools.cache
        def ngrams():  # not before the first step, which should come soon
            found = subject.baselines(run) if report and schedule.evaluate else {}
            if found:
                report.say("baselines on the held-out targets, nats per target: " + _numbers(found))
            return found

        stop = stack.enter_context(_StopSignals())

        # ------------------------------------------------------------ the loop
        meter, pending, validation = StepMetrics(), None, None
        step, total = start, start if patience.over else schedule.total
        for step in range(start + 1, total + 1):
            waiting = time.perf_counter()
            rows = sharding.host_to_device(subject.rows(next(batches)), mesh, rules)
            position = batches.get_state()
            meter.stalled += time.perf_counter() - waiting
            if leader:
                trace.before(step)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = run.train_step(state, rows)
            trace.after(step, metrics)
            if pending is not None:
                meter.add(*pending)  # fetched while this step runs
            pending = (step, metrics)
            if step == start + 1:
                jax.block_until_ready(metrics)
                logger.info("first step done %s after the start; it compiled", duration(time.perf_counter() - began))
                ngrams()
                host_memory.set_fragments_aside()
                if meter.peak_flops:
                    meter.flops_per_token = subject.flops_per_token(run, rows)
                if not due(step, schedule.log, schedule.total):  # else the line of this step says what compiling took
                    meter.restart(untimed=1)

            log, evaluating, show, save = (
                due(step, every, schedule.total)
                for every in (schedule.log, schedule.evaluate, schedule.show, schedule.checkpoint)
            )
            stopping, last = stop.agreed(step), step == schedule.total
            if not (log or evaluating or show or save or stopping or last):
                continue
            meter.add(*pending)  # so nothing is saved or shown before its loss is known to be a number
            pending = None
            if log:
                values = meter.close()
                if report:
                    report.metrics(step, values)
                    report.progress(step, values)
            aside, validation = time.perf_counter(), None
            if evaluating:
                validation = subject.evaluate(run, state.params, process_index, process_count)
                patience.saw(validation)
                last = last or patience.over
                if report:
                    report.metrics(step, validation)
                    report.say(f"step {step}: {subject.describe(validation, ngrams())}")
            if show:
                text = subject.show(run, state.params)
                if report:
                    report.say(text)
                    _append(folder.path / "samples.md", f"## step {step}\n\n{text}\n\n")
            if save or stopping or last:
                checkpoints.save(step, state, position | patience.get_state(), validation)
            if stopping and not last:
                checkpoints.wait()
                message = f"stopped after step {step}, which is saved: the same command goes on from there"
                if leader:
                    logger.warning("%s", message)
                raise Interrupted(message)
            if last:
                break
            if evaluating or show:  # which may have compiled
                host_memory.set_fragments_aside()
            meter.exclude(time.perf_counter() - aside)

        # ------------------------------------------------------------ the result
        checkpoints.wait()
        baselines = ngrams()
        final = validation or subject.evaluate(run, state.params, process_index, process_count)
        result = {
            "step": step,
            "parameters": parameter_count(run.model.config),
            **final,
            **{f"{name}_baseline": value for name, value in baselines.items()},
            "seconds": time.perf_counter() - began,
        }
        if report:
            write_json_atomic(folder.path / "result.json", result)
            picture = plot_loss(folder.path, {n: baselines[n] for n in BASELINES if n in baselines})
            report.say(f"done: {subject.describe(final, baselines)}\nloss curve: {picture}\nrun folder: {folder.path}")
        return result


class _StopSignals:
    """Ctrl-C and SIGTERM ask for a stop after a step; a second Ctrl-C stops at once.

    On many hosts JAX listens to SIGTERM, tells all of them, and has them agree on a step, without waiting for it.
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
        """Whether to stop after this step, the same on every host."""
        if not self._many:
            return self._asked
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def __exit__(self, *error):
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _say_what_runs(config, run, schedule, rows):
    length, model = rows.sequence_length, run.model.config
    logger.info(
        "model: %.2f M parameters, %d layers, width %d, %d heads, vocabulary %d, computes in %s; mesh %s",
        parameter_count(model) / 1e6, model.num_layers, model.hidden_size, model.num_heads, model.vocab_size,
        model.dtype, dict(run.mesh.shape),
    )  # fmt: skip
    logger.info(
        "run: %d steps x %d rows x %d tokens = %.1f M tokens, %.2f epochs; warm-up %d steps, decay until %d",
        schedule.total, config.batch_size, length, schedule.total * config.batch_size * length / 1e6,
        schedule.total * config.batch_size / len(rows), schedule.warmup, schedule.decay,
    )  # fmt: skip


def _numbers(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())


def _append(path: pathlib.Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)
