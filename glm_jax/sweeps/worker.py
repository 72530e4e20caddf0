"""A process that does one job after another for its parent, `sweeps.pool`: trials, tests, baselines."""

import contextlib
import dataclasses
import logging
import os
import pathlib
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

from ml_collections import ConfigDict

from glm_jax.logs import log_to

TRAIN, TEST, BASELINE = "train", "test", "baseline"


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker does: `kind` with the config in the folder. `options` are those of the kind."""

    kind: str
    folder: pathlib.Path
    config: ConfigDict
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Pruned(Exception):
    """The parent stops a trial that is worse than others at the same step."""


def work(connection: Connection, environment: Mapping[str, str], cores: Sequence[int] | None, programs: str) -> None:
    """Answers each Job with ("end", result) until the parent closes the connection.

    A job in between sends ("score", step, value), which the parent answers with whether it may go on. A result is a
    dict; one with "error" tells why the job failed. SIGTERM ends a trial with its state saved; where the parent dies,
    the process does too.
    """
    os.setsid()  # Ctrl-C reaches the parent alone, which asks for a stop once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(environment)
    if cores is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    import jax

    from glm_jax.training.host_memory import keep_freed_memory

    keep_freed_memory()
    jax.config.update("jax_compilation_cache_dir", programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compiled: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: compiled.append(event))
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        compiled.clear()
        result = _do(job, connection)
        result["compiled"] = compiled.count("/jax/compilation_cache/cache_misses")
        connection.send(("end", result))


def _end_with_parent():
    wait([parent_process().sentinel])
    os._exit(1)


def _do(job, connection):
    from glm_jax.training.trainer import Interrupted

    job.folder.mkdir(parents=True, exist_ok=True)
    began = time.time()
    with (job.folder / "log.txt").open("a", buffering=1) as log:
        log_to(log)
        try:
            with contextlib.redirect_stderr(log), contextlib.redirect_stdout(log):
                result = _KINDS[job.kind](job, connection)
        except Interrupted:
            raise SystemExit(0) from None
        except Pruned:
            result = {"pruned": True}
        except Exception as error:
            logging.getLogger(__name__).exception("failed")
            text = str(error).strip() or "without a message"
            result = {"error": f"{type(error).__name__}: {text.splitlines()[0]}"}
        finally:
            log_to()  # of the file, which is closed now, nothing may stay
    return result | {"wall_seconds": time.time() - began}


def _train(job, connection):
    from glm_jax.sweeps.hub import train_hub
    from glm_jax.sweeps.space import SweepError
    from glm_jax.tuning.run import finetune

    def on_score(step, score):
        connection.send(("score", step, score))
        if not connection.recv():
            raise Pruned

    def on_log(step, metrics):
        if (score := metrics.get("validation_score")) is not None:
            if (metric := job.options.get("metric")) is not None and f"validation_{metric}" not in metrics:
                known = [key.removeprefix("validation_") for key in metrics if key.startswith("validation_")]
                raise SweepError(f"metric {metric!r} is not reported; known: {', '.join(known)}")
            on_score(step, score)

    if "hub" in job.options:
        train_hub(job.config, job.folder, job.options["hub"], on_score)
    else:
        finetune(job.config, job.folder, on_log=on_log)
    return {}


def _test(job, connection):
    del connection
    from glm_jax.sweeps.hub import score_hub
    from glm_jax.tuning.run import score_best

    score = score_hub if "hub" in job.options else score_best
    score(job.config, job.folder, job.options["split"], job.folder / "report")
    return {}


def _baseline(job, connection):
    del connection
    from glm_jax.evaluation.baselines import baseline
    from glm_jax.evaluation.results import Options, write_results
    from glm_jax.tuning.task import tasks_of, validation_tasks

    config, kind = job.config, job.options["baseline"]
    tasks = [_few_shot(task, config) for task in tasks_of(config)]
    for split, name, own in (
        (config.validation_split, "validation", validation_tasks(tasks, config)),
        (job.options["split"], "report", tasks),
    ):
        options = Options(split=split, batch_size=config.eval_batch_size)
        results = [baseline(task, kind, options, config.train_split) for task in own]
        write_results(results, str(job.folder / name), kind)
    return {}


def _few_shot(task, config):
    """The task with the training examples that the other candidates have."""
    from glm_jax.tuning.task import few

    source = task.source
    return dataclasses.replace(
        task, source=lambda split: few(list(source(split)), config) if split == config.train_split else source(split)
    )


_KINDS = {TRAIN: _train, TEST: _test, BASELINE: _baseline}
