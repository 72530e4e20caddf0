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

from glm_jax import data, hosts, program, sharding
from glm_jax.checkpoint import Checkpointer, write_json_atomic
from glm_jax.corruption import OBJECTIVES
from glm_jax.durations import due
from glm_jax.flops import useful_flops
from glm_jax.meter import Meter
from glm_jax.model import parameter_count
from glm_jax.profiling import Profile
from glm_jax.report import Report, duration, plot_loss
from glm_jax.run_folder import BEST, RunFolder, agreed_keys, load_run
from glm_jax.samples import fill_held_out
from glm_jax.train_step import Rows
from glm_jax.validation import BASELINES, baselines, evaluate, held_out_rows

logger = logging.getLogger(__name__)


class Interrupted(SystemExit):
    """The run was asked to stop, and saved its state first. Its exit code asks a launcher to start it again."""

    def __init__(self, message: str):
        super().__init__(hosts.RESTART)
        self._message = message

    def __str__(self) -> str:
        return self._message


def train(config: ConfigDict, workdir: str, profile: str | None = None) -> dict[str, Any]:
    """Trains until the config's duration is over, in the run folder `workdir`; resumes what it finds there.

    `profile` = "steps=10:15" writes a trace of these steps. Returns the final result, as in result.json. On many
    hosts, call it on each after `hosts.start`.

    Raises ValueError for a config, a corpus or a folder that cannot be used, before anything is compiled; HostError
    when hosts differ or are missing; NonFiniteError when training diverges; Interrupted after Ctrl-C or SIGTERM.
    """
    began = time.perf_counter()
    leader = jax.process_index() == 0

    # ---------------------------------------------------------------- what is wrong shows before the work starts
    hosts.check_agreement({"config": agreed_keys(config), "workdir": str(workdir), "profile": profile})
    folder = RunFolder(pathlib.Path(workdir))
    with hosts.together("checking config and run folder"):
        mesh, rules = program.check(config)
        trace = Profile(profile, folder.path / "profile")
        if leader:
            folder.claim(config)
        _check_init_from(config, folder)
    with hosts.together("opening the run folder"):
        folder.check_shared()
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", str(config.compilation_cache))

    # ---------------------------------------------------------------- text
    dataset = hosts.leader_first("preparing the text", lambda: data.load(config.data.to_dict()))
    tokenizer, held_out = dataset.tokenizer, dataset.validation_rows
    if held_out is None:
        raise ValueError("nothing is held out: set validation_fraction, _split or _source of a corpus")
    hosts.check_agreement({"data": [tokenizer.fingerprint(), dataset.train_rows.fingerprint(), len(held_out)]})
    if leader:
        tokenizer.save(folder.tokenizer)
    for name, facts in dataset.statistics.items():
        train_part = facts["train"]
        logger.info(
            "corpus %s: %.0f %% of the rows; %d documents, %d tokens, %.2f bytes a token; held out: %d tokens",
            name, 100 * facts["share"], train_part["documents"], train_part["tokens"], train_part["bytes_per_token"],
            facts.get("validation", {"tokens": 0})["tokens"],
        )  # fmt: skip

    # ---------------------------------------------------------------- program and state
    schedule = program.schedule_of(config, rows=len(dataset.train_rows))
    run = program.build(
        config, schedule, mesh, rules,
        vocab_size=tokenizer.vocab_size, special=tokenizer.special, sentence_ends=tokenizer.sentence_ends(),
    )  # fmt: skip
    _say_what_runs(config, run, schedule, len(dataset.train_rows))
    process, processes = sharding.process_shard(mesh, rules)
    batches = data.train_iterator(
        dataset.train_rows, batch_size=config.batch_size, seed=config.seed, process_index=process,
        process_count=processes,
    )  # fmt: skip
    eval_batch = config.batch_size // config.accumulation
    validate = functools.partial(held_out_rows, held_out, eval_batch, config.eval_examples)

    with contextlib.ExitStack() as stack:
        stack.enter_context(run.activate())
        keep_best = BEST if config.keep_best else None
        checkpoints = stack.enter_context(
            Checkpointer(folder.checkpoints, keep_last=config.keep_last, keep_best=keep_best)
        )
        if checkpoints.steps():
            restored = checkpoints.restore(run.abstract_state)
            state, start = restored.state, restored.step
            batches.set_state(restored.data_position)
            logger.info("%s; data goes on at example %d", restored, restored.data_position["next_example"])
        else:
            state, start = run.init(jax.random.key(config.seed)), 0
            if config.init_from is not None:
                state = state.replace(params=_parameters_of(config.init_from, run))
            logger.info("fresh start: %s", config.init_from or "new parameters")
        trace.check(start, schedule.total)
        stack.callback(trace.close)
        report = None
        if leader:
            report = stack.enter_context(contextlib.closing(Report(folder.path, start=start, total=schedule.total)))
        ngrams = {}
        if leader and schedule.evaluate:
            ngrams = baselines(run, dataset.ngram_baseline(), validate(), tokenizer.special.cls)
            report.say("baselines on the held-out targets, nats per target: " + _numbers(ngrams))
        stop = stack.enter_context(_StopSignals())

        # ------------------------------------------------------------ the loop
        meter, pending, validation = Meter(), None, None
        for step in range(start + 1, schedule.total + 1):
            waiting = time.perf_counter()
            rows = sharding.host_to_device(Rows(**next(batches)), mesh, rules)
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
                if meter.peak_flops:
                    meter.flops_per_token = _flops_per_token(run, rows)
                meter.restart()

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
                validation = evaluate(run, state.params, validate(process=process, processes=processes))
                if report:
                    report.metrics(step, validation)
                    report.say(f"step {step}: {_beside(validation, ngrams)}")
            if show:
                text = fill_held_out(run.model, state.params, tokenizer, held_out, seed=config.seed)
                if report:
                    report.say(text)
                    _append(folder.path / "samples.md", f"## step {step}\n\n{text}\n\n")
            if save or stopping or last:
                checkpoints.save(step, state, position, validation)
            if stopping and not last:
                checkpoints.wait()
                message = f"stopped after step {step}, which is saved: the same command goes on from there"
                if leader:
                    logger.warning("%s", message)
                raise Interrupted(message)
            meter.exclude(time.perf_counter() - aside)

        # ------------------------------------------------------------ the result
        checkpoints.wait()
        final = validation or evaluate(run, state.params, validate(process=process, processes=processes))
        result = {
            "step": schedule.total,
            "parameters": parameter_count(run.model.config),
            **final,
            **{f"{name}_baseline": value for name, value in ngrams.items()},
            "seconds": time.perf_counter() - began,
        }
        if report:
            write_json_atomic(folder.path / "result.json", result)
            picture = plot_loss(folder.path, {n: ngrams[n] for n in BASELINES if n in ngrams})
            report.say(f"done: {_beside(final, ngrams)}\nloss curve: {picture}\nrun folder: {folder.path}")
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


def _flops_per_token(run: program.Program, rows: Rows) -> float:
    """Useful operations of a raw token in this batch. Every host calls it: the batch is spread over all."""
    gather = jax.jit(
        lambda rows: (run.corrupt_held_out(rows), rows.lengths), out_shardings=sharding.replicated(run.mesh)
    )
    batch, lengths = jax.device_get(gather(rows))
    return useful_flops(run.model.config, batch) / max(float(lengths.sum()), 1.0)


def _check_init_from(config, folder):
    """Before the text is tokenised, which may take hours. A run that has begun no longer needs the other one."""
    if config.init_from is None or any(folder.checkpoints.glob("[0-9]*")):
        return
    if not RunFolder(pathlib.Path(config.init_from)).config.exists():
        raise ValueError(
            f"init_from {config.init_from} is no run folder (it has no config.json): train that run first, or set "
            "init_from=None to start from new parameters"
        )


def _parameters_of(path, run: program.Program):
    loaded = load_run(path)
    shapes = jax.tree.map(lambda a: a.shape, loaded.params), jax.tree.map(lambda a: a.shape, run.abstract_state.params)
    if shapes[0] != shapes[1]:
        raise ValueError(f"init_from {path}: its model has other shapes ({loaded.model.config}); use the same model")
    return jax.tree.map(jax.device_put, loaded.params, run.shardings.params)


def _say_what_runs(config, run, schedule, rows):
    length = config.data.sequence_length
    capacity, model = run.corruption.capacity(length), run.model.config
    logger.info(
        "model: %.2f M parameters, %d layers, width %d, %d heads, vocabulary %d, computes in %s; mesh %s",
        parameter_count(model) / 1e6, model.num_layers, model.hidden_size, model.num_heads, model.vocab_size,
        model.dtype, dict(run.mesh.shape),
    )  # fmt: skip
    logger.info(
        "run: %d steps x %d rows x %d tokens = %.1f M tokens, %.2f epochs; warm-up %d steps, decay until %d",
        schedule.total, config.batch_size, length, schedule.total * config.batch_size * length / 1e6,
        schedule.total * config.batch_size / rows, schedule.warmup, schedule.decay,
    )  # fmt: skip
    logger.info(
        "corruption: T = %d, at most %d blanks and %d targets an example; blank infilling wants more with p = %.1e",
        run.corruption.sequence_length(length), capacity.max_spans, capacity.max_targets, capacity.cap_rate,
    )  # fmt: skip


def _numbers(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())


def _beside(validation: dict[str, float], ngrams: dict[str, float]) -> str:
    """Validation loss, overall and by objective, each beside the baselines on the same targets."""
    parts = []
    for objective in ("", *(f"{name}_" for name in OBJECTIVES)):
        if f"validation_{objective}loss" in validation:
            others = [f"{n} {ngrams[objective + n]:.3f}" for n in BASELINES if objective + n in ngrams]
            label = objective.rstrip("_").replace("_", " ") or "validation loss, nats per target"
            parts.append(f"{label} {validation[f'validation_{objective}loss']:.3f} ({', '.join(others)})")
    return "; ".join(parts)


def _append(path: pathlib.Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)
