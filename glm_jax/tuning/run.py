"""A fine-tuning run from its checkpoint to its result: one run or several seeds, and the test at the end."""

import dataclasses
import functools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from glm_jax import tokenizers
from glm_jax.config import OVERRIDABLE
from glm_jax.distributed import processes, sharding
from glm_jax.evaluation import results as results_lib
from glm_jax.evaluation.classifier import num_classes
from glm_jax.files import write_json_atomic
from glm_jax.interop import from_pretrained
from glm_jax.interop.adapter import write_adapter
from glm_jax.methods import has_adapter, method_of
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import error_context, read
from glm_jax.tasks.task import AnyTask, Task
from glm_jax.training.trainer import train_task
from glm_jax.training.workdir import RunFolder
from glm_jax.tuning.task import FinetuningTask, check_keys, evaluate_tasks, tasks_of

logger = logging.getLogger(__name__)


def finetune(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    on_log: Callable[[int, Mapping[str, Any]], None] | None = None,
    profile: str | None = None,
) -> dict[str, Any]:
    """Fine-tunes `config.init_from` on `config.tasks` in `workdir`; the same call resumes a run that stopped.

    With several `config.seeds`, each has a run in workdir/seed-N. `on_log` and `profile` are those of
    `trainer.train_task`, for each run. Returns the contents of workdir/test.json: for every number {"mean",
    "deviation", "values"}, where the deviation is that of a sample; and the split and count of every task.
    Raises ValueError for a config, a checkpoint or a folder that cannot be used, TaskError for a task or example that
    cannot, before anything is compiled; and as `trainer.train_task`.
    """
    if config.kind != "finetune":
        raise ValueError(
            "this config is for pretraining: take one of configs/finetune/, or start the verb pretrain with it"
        )
    run = functools.partial(_run, on_log=on_log, profile=profile)
    seeds = config.seeds
    if seeds is None:
        complete = RunFolder(pathlib.Path(workdir)).finished() is not None
        resolved, folder = run(config, workdir)
        saved = json.dumps(_saved_test(folder) if complete else None)
        summary = json.loads(processes.allgather_text("looking for a finished test", saved)[0])
        return summary or _summary(workdir, [_test(resolved, folder)])
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds {tuple(seeds)} must be different numbers, at least one")
    results = []
    for seed in seeds:
        logger.info("seed %d", seed)
        copy = config.copy_and_resolve_references()
        with copy.ignore_type():
            copy.seed, copy.seeds = seed, None
        results.append(_test(*run(copy, os.path.join(workdir, f"seed-{seed}"))))
    return _summary(workdir, results)


def _run(config, workdir, **options):
    """Trains one seed; returns the config, complete with the checkpoint's model, and the folder."""
    config, folder = config.copy_and_resolve_references(), RunFolder(pathlib.Path(workdir))
    train_task(open_checkpoint(config, folder), workdir, **options)
    return config, folder


def _saved_test(folder):
    path = folder.path / "test.json"
    return json.loads(path.read_text()) if path.exists() else None


def open_checkpoint(config: ConfigDict, folder: RunFolder) -> FinetuningTask:
    """The task of the run; completes `config` with the checkpoint's model and, for a classifier, its classes.

    A run that has begun needs its own folder only, unless its method leaves parameters of the checkpoint as they are.
    Raises FormatError for a checkpoint that cannot be read or has no
    tokenizer.
    """
    tasks = checked_tasks(config)
    if folder.begun and folder.config.exists():
        model, params = folder.read_config()["model"], None
        tokenizer = tokenizers.load(folder.tokenizer)
        if config.method != "full" and folder.finished() is None:
            params = from_pretrained(config.init_from, dtype="float32", tokenizer=config.tokenizer).model_params
    else:
        source = from_pretrained(config.init_from, dtype="float32", tokenizer=config.tokenizer)
        tokenizer = source.require_tokenizer()
        if has_adapter(source.params):
            raise ValueError(
                f"init_from {config.init_from} has an adapter: merge it first (python -m glm_jax convert --merge), or "
                "start from its base"
            )
        model, params = dataclasses.asdict(source.model.config), source.model_params
        if config.head == "classifier" and "classifier" in source.params:
            logger.warning("the classification head of %s is not used: the new one starts fresh", config.init_from)
    model |= {key: config.model[key] for key in OVERRIDABLE if config.model[key] is not None}
    with config.unlocked():
        for key in config.model:
            with config.model.ignore_type():
                config.model[key] = model.get(key)
        if config.head == "classifier":
            config.classes = num_classes(tasks[0])
    return FinetuningTask(config, tokenizer, params)


def checked_tasks(config: ConfigDict) -> list[AnyTask]:
    """The tasks, their splits opened: what is missing is reported before a checkpoint is read.

    Raises ValueError for keys that contradict each other, TaskError for a task or split that cannot be used.
    """
    check_keys(config)
    if fixed := [key for key in config.model if key not in OVERRIDABLE and config.model[key] is not None]:
        raise ValueError(
            f"model.{fixed[0]} is the checkpoint's: leave it None; fine-tuning may change {', '.join(OVERRIDABLE)}"
        )
    tasks = tasks_of(config)
    if len({task.name for task in tasks}) < len(tasks):
        raise ValueError(f"two tasks are named alike: {', '.join(task.name for task in tasks)}")
    for task in tasks:
        for split in {config.train_split, config.validation_split, config.test_split or config.validation_split}:
            first = read(task.source, split, 1)[0]
            if isinstance(task, Task):
                with error_context(first):
                    task.template.pattern(first.fields)
            if split == config.validation_split and isinstance(task, Task) and not _is_labelled(task, first):
                raise TaskError(f"{task.name}: example {first.id} has no label; name a labelled validation_split")
    if config.head == "classifier":
        num_classes(tasks[0])
    return tasks


def _is_labelled(task, example):
    """Whether the task's score can use the example; the labels of ReCoRD and WSC are among its fields."""
    known = (example.label, example.fields.get("label"), example.fields.get("answers"), task.template.target)
    return any(value is not None for value in known)


def _test(config, folder):
    """The best checkpoint on the test split, and what was trained in folder/adapter."""
    opened = from_pretrained(folder.path, dtype="float32")
    if config.method != "full":
        _write_adapter(config, folder, opened)
    return _score(config, opened, config.test_split or config.validation_split, folder.path / "test", folder.path)


def score_best(config: ConfigDict, workdir: str | os.PathLike, split: str, out: str | os.PathLike) -> None:
    """Scores the best checkpoint of a run on another split: results.json and predictions in the folder `out`.

    Raises TaskError for a split that cannot be used.
    """
    _score(config, from_pretrained(workdir, dtype="float32"), split, out, workdir)


def _score(config, opened, split, out, checkpoint):
    model, params, tokenizer = opened
    options = results_lib.Options(split=split, batch_size=config.eval_batch_size, head=config.head, pool=config.pool)
    results = evaluate_tasks(model, params, tokenizer, tasks_of(config), options)
    if jax.process_index() == 0:
        results_lib.write_results(results, os.fspath(out), os.fspath(checkpoint))
    return results


def _write_adapter(config, folder, opened):
    """What was trained, in folder/adapter."""
    method = method_of(config.to_dict())
    trained, _ = sharding.local_replica(method.split(opened.params)[0])
    with processes.all_or_none("writing the adapter"):
        if jax.process_index() == 0:
            base = opened.adapter["base"]
            write_adapter(folder.path / "adapter", method, trained, opened.model.config, base, config.pool)
            logger.info("adapter: %s", folder.path / "adapter")


def _summary(workdir, runs):
    summary: dict[str, Any] = {}
    for results in zip(*runs, strict=True):
        first, numbers = results[0], {}
        for name in first.numbers:
            values = [result.numbers[name] for result in results]
            deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            numbers[name] = {"mean": float(np.mean(values)), "deviation": deviation, "values": values}
        summary[first.task] = {"split": first.split, "examples": first.count, **numbers}
    if jax.process_index() == 0:
        write_json_atomic(os.path.join(workdir, "test.json"), summary)
    return summary


def format_summary(summary: dict[str, Any]) -> str:
    """Lines for people: mean ± deviation over the seeds, with split and count."""
    lines = []
    for task, facts in summary.items():
        for name, value in facts.items():
            if isinstance(value, dict):
                spread = f" ± {value['deviation']:.2f} ({len(value['values'])} seeds)" if value["values"][1:] else ""
                where = f"{task}, {facts['split']}, {facts['examples']} examples"
                lines.append(f"{where}: {name} {value['mean']:.2f}{spread}")
    return "\n".join(lines)
