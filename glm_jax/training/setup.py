"""From a config to the functions that a device runs. Training, planning and benchmarks all get them here."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from glm_jax import config as config_lib
from glm_jax.corruption.baselines import BASELINES
from glm_jax.corruption.config import CorruptionConfig
from glm_jax.distributed import sharding
from glm_jax.distributed.mesh import make_mesh
from glm_jax.methods.base import Method
from glm_jax.model.attention import check_backend
from glm_jax.model.batch import Batch
from glm_jax.model.config import check_lengths
from glm_jax.model.transformer import GLM, init_params, parameter_count
from glm_jax.tokenizers.special import SpecialTokens
from glm_jax.training import durations, optimizer
from glm_jax.training.train_step import (
    LossSums,
    Objective,
    TokenRows,
    TrainState,
    blank_infilling,
    init_state,
    make_corrupt,
    make_eval_step,
    make_train_step,
)


@dataclasses.dataclass(frozen=True)
class StepSchedule:
    """A run's durations in optimizer steps."""

    total: int
    decay: int
    warmup: int
    log: int
    evaluate: int
    sample: int
    checkpoint: int


@dataclasses.dataclass(frozen=True)
class TrainingSetup:
    """The functions of a run, compiled on first use, and what they need. Call them inside `activate()`."""

    model: GLM
    optimizer: optax.GradientTransformation
    mesh: Mesh
    rules: sharding.Rules
    shardings: TrainState  # of NamedShardings
    abstract_state: TrainState  # of jax.ShapeDtypeStructs with shardings
    init: Callable[[jax.Array], TrainState]
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]  # rows: of the run's objective
    # (trained, frozen) -> the model's parameters; None: all train.
    join: Callable[[Any, Any], Any] | None = dataclasses.field(default=None, kw_only=True)
    # What the step takes as arguments instead of constants, for `TrainState.hyperparameters`; None: nothing.
    hyperparameters: dict[str, np.generic] | None = dataclasses.field(default=None, kw_only=True)

    def completed(self, state: TrainState, frozen: Any = None) -> TrainState:
        """A state that `init` made, or that was restored, with what no checkpoint holds."""
        given = self.hyperparameters
        if given is not None:
            given = jax.device_put(given, sharding.replicated(self.mesh))
        return state.replace(frozen=frozen, hyperparameters=given)

    def params_of(self, state: TrainState) -> Any:
        """The model's parameters: those that train, and the frozen ones."""
        return state.params if self.join is None else self.join(state.params, state.frozen)

    def activate(self):
        """Context in which mesh and sharding rules hold."""
        return _active(self.mesh, self.rules)


@dataclasses.dataclass(frozen=True)
class PretrainingSetup(TrainingSetup):
    """The functions of a run that learns from corrupted text."""

    corruption: CorruptionConfig
    eval_step: Callable[[Any, TokenRows], LossSums]
    corrupt: Callable[[TokenRows], Batch]  # as the training step does
    corrupt_held_out: Callable[[TokenRows], Batch]  # validation's own randomness: the same in every evaluation


@contextlib.contextmanager
def _active(mesh, rules):
    with jax.set_mesh(mesh), sharding.logical_axis_rules(rules):
        yield


def corruption_config(config: ConfigDict) -> CorruptionConfig:
    """The run's corruption; its position table is the model's."""
    positions = config_lib.model_config(config.model, 1).max_position_embeddings
    return config_lib.build(CorruptionConfig, config.corruption.to_dict(), max_position=positions)


def check(config: ConfigDict, devices: Sequence[Any] | None = None) -> tuple[Mesh, sharding.Rules]:
    """The run's mesh and sharding rules; `devices` may be those of a topology that is only planned.

    Raises ValueError for what is wrong with a config before data is touched.
    """
    if config.kind != "pretrain":
        raise ValueError(
            "this config is for fine-tuning: take one of configs/pretrain/, or start the verb finetune with it"
        )
    _check_batch(config)
    check_durations(config)
    corruption = corruption_config(config)
    _check_masks(config.data.tokenizer, corruption)
    _check_layout(config.model.layout, corruption)
    if corruption.sentinel_offset is not None and not config.model.block_positions:
        raise ValueError(
            "corruption.sentinel_offset puts blanks at the last row of the position table, which a model without "
            "block_positions does not have: set model.block_positions = True, or sentinel_offset = None"
        )
    length = config.data.sequence_length
    for slot in corruption.slots():
        slot.capacity(length)
    # Part B of a GLM has the positions of Part A; the rows of `baselines` go on.
    longest = length if corruption.baseline is None else corruption.sequence_length(length)
    check_lengths(config_lib.model_config(config.model, 1), longest - 1, corruption.max_block_position(length))
    mesh, rules = check_mesh(config, devices, several_texts=corruption.short_sequence_prob > 0)
    slots, micro_batch = len(corruption.slots()), config.batch_size // config.grad_accumulation_steps
    if micro_batch % (slots * sharding.batch_shards(mesh, rules)):
        raise ValueError(
            f"corruption.pack_objectives puts {slots} examples into a row, and {micro_batch} examples of a micro batch "
            f"are no multiple of {slots} on each of {sharding.batch_shards(mesh, rules)} parts of the mesh: change "
            "batch_size, or set corruption.pack_objectives = False"
        )
    return mesh, rules


def _check_layout(layout, corruption):
    """Raises ValueError unless the model is of the kind that the rows are for."""
    expected = ("glm", "masked") if corruption.masked_lm else (BASELINES.get(corruption.baseline, "glm"),)
    if layout not in expected:
        raise ValueError(
            f"model.layout {layout!r} does not read the rows of corruption.baseline {corruption.baseline!r}: set "
            f"model.layout = {expected[0]!r}"
        )


def check_mesh(
    config: ConfigDict, devices: Sequence[Any] | None = None, *, several_texts: bool = False, prefix: bool = False
) -> tuple[Mesh, sharding.Rules]:
    """The part of `check` that holds for every kind of run.

    `several_texts`: a row may hold texts of its own. `prefix`: attention sees trained keys and values.
    """
    _check_batch(config)
    if config.kind == "finetune":
        check_durations(config)
    shape = {axis: size for axis, size in config.mesh.items() if size is not None} or "auto"
    model = config_lib.model_config(config.model, 1)
    state_bytes = 12.0 * parameter_count(model)  # float32 parameters and two moments; the vocabulary comes later
    mesh = make_mesh(shape, devices, model.head_width, state_bytes)
    rules = sharding.RULES | dict(config.logical_axis_rules)
    with jax.set_mesh(mesh):
        check_backend(
            model.attention_backend, model.dtype, model.head_width, dropout_rate=model.attention_dropout,
            several_texts=several_texts, prefix=prefix,
        )  # fmt: skip
    if shared := set(sharding.rule_axes("batch", rules)) & set(sharding.rule_axes("vocab", rules)):
        raise ValueError(
            f"the rules split both 'batch' and 'vocab' over {', '.join(sorted(shared))}: the head needs every row "
            "beside every word; set one of them to other mesh axes, or to None"
        )
    # A micro batch stays spread over all devices.
    sharding.local_batch_size(config.batch_size // config.grad_accumulation_steps, mesh, rules)
    return mesh, rules


def check_durations(config: ConfigDict) -> None:
    """Raises ValueError for a duration that no size of the training set makes valid."""
    resolve_durations(config, rows=1)


def _check_batch(config):
    if (
        config.batch_size < 1
        or config.grad_accumulation_steps < 1
        or config.batch_size % config.grad_accumulation_steps
    ):
        raise ValueError(
            f"batch_size {config.batch_size} must be a positive multiple of grad_accumulation_steps "
            f"{config.grad_accumulation_steps}: every micro batch has the same number of examples"
        )


def _check_masks(tokenizer: ConfigDict, corruption: CorruptionConfig) -> None:
    """A released vocabulary has the masks that the corruption writes; those trained here have all of them."""
    if tokenizer.vocabulary is None:
        return
    hides = corruption.block_mask_prob > 0 or corruption.context_mask_ratio > 0
    for key, needed, names in (
        ("task_masks", corruption.task_masks, "[gMASK] and [sMASK]"),
        ("block_mask", hides, "[dBLOCK]"),
    ):
        if needed and not tokenizer[key]:
            raise ValueError(
                f"the corruption writes {names}, which the {tokenizer.vocabulary} vocabulary gets only with "
                f"data.tokenizer.{key} = True"
            )


def resolve_durations(config: ConfigDict, rows: int | None = None) -> StepSchedule:
    """The run's durations in steps; `rows` is the size of the training set, which epochs need.

    Raises ValueError for a duration that cannot be resolved.
    """
    steps = functools.partial(
        durations.to_steps,
        batch_size=config.batch_size,
        tokens_per_example=config.data.sequence_length,
        examples_per_epoch=rows,
    )
    total = steps(config.train_duration, name="train_duration")
    if not 1 <= total <= 2**32 // config.batch_size:
        raise ValueError(
            f"train_duration {config.train_duration!r} is {total} steps; with batch_size {config.batch_size} it must "
            f"lie in 1 … {2**32 // config.batch_size}, because examples are numbered with 32 bits"
        )
    decay = steps(config.schedule.decay, name="schedule.decay", total_steps=total)
    warmup = steps(config.schedule.warmup, name="schedule.warmup", total_steps=decay)
    if 2 * (warmup - 1) < decay < 2 * warmup:  # only rounded up is it more than half
        warmup = decay // 2
    return StepSchedule(
        total=total,
        decay=decay,
        warmup=warmup,
        log=steps(config.log_every, name="log_every", total_steps=total),
        evaluate=steps(config.eval_every, name="eval_every", total_steps=total),
        sample=steps(config.sample_every, name="sample_every", total_steps=total),
        checkpoint=steps(config.checkpoint_every, name="checkpoint_every", total_steps=total),
    )


def make_setup(
    config: ConfigDict,
    schedule: StepSchedule,
    mesh: Mesh,
    rules: sharding.Rules,
    *,
    vocab_size: int,
    special: SpecialTokens,
    sentence_ends: Any,
) -> PretrainingSetup:
    """The functions of a pretraining run, sharded over `mesh`; nothing is compiled yet.

    `sentence_ends` is bool [V]. Raises ValueError for sizes that model, optimizer or mesh refuse.
    """
    model = GLM(config_lib.model_config(config.model, vocab_size))
    corruption = corruption_config(config)
    corrupt_rows, corrupt_held_out = (
        make_corrupt(seed, corruption, special, sentence_ends) for seed in (config.seed, config.seed + 1)
    )
    built = make_setup_for(
        model, blank_infilling(model, corrupt_rows), config, schedule, mesh, rules, together=len(corruption.slots())
    )
    evaluate = make_eval_step(blank_infilling(model, corrupt_held_out))
    return PretrainingSetup(
        **vars(built),
        corruption=corruption,
        eval_step=jax.jit(evaluate, out_shardings=sharding.replicated(mesh)),
        corrupt=jax.jit(corrupt_rows),
        corrupt_held_out=jax.jit(corrupt_held_out),
    )


def make_setup_for(
    model: GLM,
    objective: Objective,
    config: ConfigDict,
    schedule: StepSchedule,
    mesh: Mesh,
    rules: sharding.Rules,
    parameters: Callable[[GLM, Any], Any] = init_params,
    together: int = 1,
    method: Method | None = None,
    frozen_dtype: str = "float32",
    share_programs: bool = False,
) -> TrainingSetup:
    """The functions of a run that minimises `objective`.

    `parameters` makes fresh ones, boxed with their logical axes. `together` is for `make_train_step`. With a `method`,
    `init` makes those that train; the caller puts the frozen ones into the state, in `frozen_dtype`. With
    `share_programs` the step takes seed and peak learning rate as arguments (`TrainState.hyperparameters`).
    """
    rate = optimizer.schedule(
        config.schedule.name,
        config.schedule.peak_lr,
        schedule.decay,
        warmup=schedule.warmup,
        final_lr_ratio=config.schedule.final_lr_ratio,
    )
    split = method.split if method else lambda params: (params, None)
    with _active(mesh, rules):
        key = jax.eval_shape(lambda: jax.random.key(0))  # abstract: a planned mesh cannot hold it
        names, frozen = jax.eval_shape(lambda key: split(parameters(model, key)), key)
        tx = optimizer.make_optimizer(names, rate, **config.optimizer.to_dict())

        def init(key):
            return init_state(model, tx, key, lambda model, key: split(parameters(model, key))[0])

        boxed = jax.eval_shape(init, key)
    shardings = sharding.state_shardings(boxed, mesh, rules)
    abstract = sharding.with_shardings(boxed, shardings)
    full_shardings = shardings
    if frozen is not None:
        full_shardings = shardings.replace(frozen=sharding.state_shardings(frozen, mesh, rules))
        frozen = jax.tree.map(lambda leaf: leaf.update(dtype=frozen_dtype), sharding.unbox(frozen))
        abstract = abstract.replace(frozen=sharding.with_shardings(frozen, full_shardings.frozen))
    replicated = sharding.replicated(mesh)
    given = None
    if share_programs:
        given = {"seed": np.uint32(config.seed % 2**32), "peak_lr": np.float32(config.schedule.peak_lr)}
        everywhere = dict.fromkeys(given, replicated)
        full_shardings = full_shardings.replace(hyperparameters=everywhere)
        abstract = abstract.replace(hyperparameters=sharding.with_shardings(given, everywhere))
    step = make_train_step(
        model,
        tx,
        objective,
        seed=config.seed,
        grad_accumulation_steps=config.grad_accumulation_steps,
        together=together,
        join=method.join if method else None,
    )
    return TrainingSetup(
        model=model,
        optimizer=tx,
        mesh=mesh,
        rules=rules,
        shardings=full_shardings,
        abstract_state=abstract,
        init=jax.jit(lambda key: sharding.unbox(init(key)), out_shardings=shardings),
        train_step=jax.jit(step, donate_argnums=0, out_shardings=(full_shardings, replicated)),
        join=method.join if method else None,
        hyperparameters=given,
    )
