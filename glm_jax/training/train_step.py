"""One optimizer step and one evaluation step as pure functions on pytrees.

A step takes raw rows. What is random about the objective happens inside, from (seed, global example index) alone, so
the batch of a step does not depend on hosts, mesh or accumulation.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from glm_jax.corruption.config import OBJECTIVES, CorruptionConfig
from glm_jax.corruption.corrupt import corrupt
from glm_jax.model.batch import Batch
from glm_jax.model.losses import target_losses
from glm_jax.model.transformer import GLM, init_params
from glm_jax.tokenizers.special import SpecialTokens
from glm_jax.training import optimizer

Leaf = Any
# (params, rows, dropout_key=None, score=False) -> (sum of losses to be differentiated, LossSums)
Objective = Callable[..., tuple[Leaf, "LossSums"]]


@flax.struct.dataclass
class TrainState:
    """What a run carries from step to step. Seed and data position are saved beside it."""

    step: Leaf  # int32 [], optimizer steps done
    params: Leaf  # those that train
    opt_state: Leaf
    frozen: Leaf = None  # the parameters that do not train, where a tuning method leaves some out
    # {"seed": uint32 [], "peak_lr": float32 []} where the step takes them as arguments: runs that differ in them alone
    # then share one compiled program. None: they are constants of the program.
    hyperparameters: Leaf = None

    @classmethod
    def create(cls, params: Leaf, tx: optax.GradientTransformation, frozen: Leaf = None) -> "TrainState":
        """The state before the first step with the optimizer `tx`."""
        return cls(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params), frozen=frozen)

    def saved(self) -> dict[str, Leaf]:
        """What a checkpoint holds: all but `frozen` and `hyperparameters`, which the run's config brings."""
        return {"step": self.step, "params": self.params, "opt_state": self.opt_state}


@flax.struct.dataclass
class TokenRows:
    """Raw rows as the host ships them."""

    tokens: Leaf  # int32 [B L]
    lengths: Leaf  # int32 [B], 0 for a row that only fills up the batch
    index: Leaf  # uint32 [B], global example index


@flax.struct.dataclass
class LossSums:
    """Sums over the targets of some rows, to be divided once, at the very end. float32.

    `loss` and `weight` have the same shape: [] where all targets are of one kind, else one entry a kind. Blank
    infilling has [objectives 2], where the second axis separates text from end tokens, because n-gram baselines know
    only text.
    """

    loss: Leaf  # nats, weighted
    weight: Leaf  # of the targets
    correct: Leaf  # []
    raw_tokens: Leaf  # []


def init_state(
    model: GLM,
    tx: optax.GradientTransformation,
    key: Leaf,
    parameters: Callable[[GLM, Leaf], Leaf] = init_params,
) -> TrainState:
    """A fresh state whose parameters carry logical axes; trace it (`jax.eval_shape`, `jax.jit`) to shard it."""
    return TrainState.create(parameters(model, key), tx)


def make_corrupt(
    seed: int, config: CorruptionConfig, special: SpecialTokens, sentence_ends: Leaf
) -> Callable[[TokenRows], Batch]:
    """The run's corruption: rows to batch, random in (seed, example index) only."""

    def corrupt_rows(rows: TokenRows) -> Batch:
        key = jax.random.key(seed)
        return corrupt(key, rows.tokens, rows.lengths, rows.index, sentence_ends, config=config, special=special)

    return corrupt_rows


def apply_loss(
    model: GLM, params: Leaf, rows: TokenRows, batch: Batch, dropout_key: Leaf = None, score: bool = False
) -> tuple[Leaf, LossSums]:
    """Sum over targets of weight · -log p (to be differentiated), and the sums of the batch by kind of target.

    `score` also counts correct targets, which costs a pass over the logits.
    """
    result = target_losses(model, params, batch, dropout_key=dropout_key, score=score)
    # Text or end token, for each objective: six kinds of targets.
    kind = batch.target_objective() * 2 + (batch.target_source >= rows.tokens.shape[1])
    kinds = kind[None] == jnp.arange(2 * len(OBJECTIVES))[:, None, None]

    def by_kind(values):
        return jnp.where(kinds, values[None], 0).sum((1, 2)).reshape(-1, 2)

    sums = LossSums(
        loss=by_kind(result.losses),
        weight=by_kind(batch.target_weights),
        correct=jnp.sum(result.correct * batch.target_weights) if score else jnp.zeros(()),
        raw_tokens=rows.lengths.sum().astype(jnp.float32),
    )
    return result.total, jax.lax.stop_gradient(sums)


def blank_infilling(model: GLM, corrupt_rows: Callable[[TokenRows], Batch]) -> Objective:
    """What pretraining minimises: `apply_loss` on the corrupted rows."""

    def objective(params, rows: TokenRows, dropout_key=None, score=False):
        return apply_loss(model, params, rows, corrupt_rows(rows), dropout_key, score)

    return objective


def batch_objective(model: GLM) -> Objective:
    """The loss of all targets of a `Batch`, for loops that make their batches outside of the step."""

    def objective(params, batch: Batch, dropout_key=None, score=False):
        result = target_losses(model, params, batch, dropout_key=dropout_key, score=score)
        sums = LossSums(
            loss=result.losses.sum(),
            weight=batch.target_weights.sum(),
            correct=jnp.sum(result.correct * batch.target_weights) if score else jnp.zeros(()),
            raw_tokens=(batch.prefix_lengths.sum() + batch.target_weights.sum()).astype(jnp.float32),
        )
        return result.total, jax.lax.stop_gradient(sums)

    return objective


def make_train_step(
    model: GLM,
    tx: optax.GradientTransformation,
    objective: Objective | None = None,
    *,
    seed: int = 0,
    grad_accumulation_steps: int = 1,
    together: int = 1,
    join: Callable[[Leaf, Leaf], Leaf] | None = None,
) -> Callable[[TrainState, Leaf], tuple[TrainState, dict[str, Leaf]]]:
    """Returns step(state, rows) -> (state, metrics); jit it with the state donated.

        step = jax.jit(make_train_step(model, tx), donate_argnums=0)
        state, metrics = step(TrainState.create(params, tx), batch)

    The loss is the mean over all targets of the global batch. (The original takes the mean per device and micro batch
    and then the mean of those, which weights short answers more.) Metrics: `loss`, `grad_norm` before clipping,
    `learning_rate` if the optimizer's state holds it (as with `make_optimizer`), and `sums`, the batch's `LossSums`.

    Args:
      model: its dropout rates decide whether the step needs random numbers.
      tx: any Optax optimizer.
      objective: (params, rows, dropout_key) -> (sum of losses, LossSums); by default `batch_objective(model)`, for
        which rows are a `Batch`.
      seed: of dropout, where the state has no hyperparameters.
      grad_accumulation_steps: the rows are cut into so many micro batches, whose gradients a scan adds up; only dropout
        depends on the cut. It must divide the number of rows.
      together: consecutive rows that a micro batch never separates, because they share a row of the model.
      join: (state.params, state.frozen) -> the model's parameters; by default state.params are all of them.
    """
    objective = objective or batch_objective(model)
    config = model.config
    rates = (config.hidden_dropout, config.attention_dropout, config.adapter_dropout)

    def gradients(params, frozen, rows, dropout_key, of_mean=False):
        def loss(params):
            total, sums = objective(join(params, frozen) if join else params, rows, dropout_key)
            return (total / _count(sums) if of_mean else total), sums

        grads, sums = jax.grad(loss, has_aux=True)(params)
        return grads, sums

    def step(state: TrainState, rows: Leaf):
        given = state.hyperparameters
        root = jax.random.key(seed if given is None else given["seed"])
        key = jax.random.fold_in(jax.random.fold_in(root, 1), state.step) if any(rates) else None
        if grad_accumulation_steps == 1:
            # Divided where the gradient begins: a division at its end is one more pass over all parameters.
            grads, sums = gradients(state.params, state.frozen, rows, key, of_mean=True)
        else:
            count = jax.tree.leaves(rows)[0].shape[0]
            if count % (grad_accumulation_steps * together):
                raise ValueError(
                    f"a batch of {count} rows cannot be cut into grad_accumulation_steps = {grad_accumulation_steps} "
                    "micro batches of the same size"
                )

            # Every accumulation-th of them, so that a micro batch stays spread over the devices as the batch is.
            def cut(x):
                groups = jnp.swapaxes(x.reshape(-1, grad_accumulation_steps, together, *x.shape[1:]), 0, 1)
                return groups.reshape(grad_accumulation_steps, -1, *x.shape[1:])

            micro = jax.tree.map(cut, rows)

            def add(total, part):
                number, rows = part
                micro_key = None if key is None else jax.random.fold_in(key, number)
                grads = gradients(state.params, state.frozen, rows, micro_key)
                return jax.tree.map(jnp.add, total, grads), None

            first = jax.tree.map(lambda x: x[0], micro)
            shapes = jax.eval_shape(gradients, state.params, state.frozen, first, key)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            (grads, sums), _ = jax.lax.scan(add, zeros, (jnp.arange(grad_accumulation_steps), micro))
            count = _count(sums)
            grads = jax.tree.map(lambda g: g / count, grads)
        extra = {} if given is None else {"peak_lr": given["peak_lr"]}
        updates, opt_state = tx.update(grads, state.opt_state, state.params, **extra)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": sums.loss.sum() / _count(sums), "sums": sums, **optimizer.metrics(opt_state, grads)}
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return step


def _count(sums):
    return jnp.maximum(sums.weight.sum(), 1.0)


def make_eval_step(objective: Objective) -> Callable[[Leaf, Leaf], LossSums]:
    """Returns step(params, rows) -> `LossSums`, without dropout."""

    def step(params, rows: Leaf):
        return objective(params, rows, score=True)[1]

    return step
