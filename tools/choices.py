"""What choices of a training step cost on a TPU slice, by its compiler: bytes moved and temporaries, without the chip.

Each choice is compared with the config as it is. Two of them are no options of a run: they undo what the step always
does, and tell what it is worth.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from glm_jax.model.losses import token_losses
from glm_jax.model.transformer import GLM
from glm_jax.planning import estimate
from glm_jax.training import setup
from glm_jax.training.train_step import Objective, apply_loss, make_corrupt

# name: keys of config.model that differ
CHOICES = {
    "dense, remat full": {"attention_backend": "dense", "remat": "full"},
    "dense, remat dots": {"attention_backend": "dense", "remat": "dots"},
    "dense, remat none": {"attention_backend": "dense", "remat": "none"},
    "chunked, remat full": {"attention_backend": "chunked", "remat": "full"},
    "chunked, remat dots": {"attention_backend": "chunked", "remat": "dots"},
    "chunked, remat none": {"attention_backend": "chunked", "remat": "none"},
    "chunked, remat full, no dropout": {
        "attention_backend": "chunked", "remat": "full", "hidden_dropout": 0.0, "attention_dropout": 0.0,
    },
}  # fmt: skip
# On top of "chunked, remat full": what the step no longer does.
UNDONE = ("last layer at every position", "vocabulary and last layer at every position")
_FIGURES = (
    "fits", "flops_per_step", "hbm_bytes_per_step", "argument_bytes", "temporary_bytes", "roofline_seconds",
    "mfu_bound", "compile_seconds", "mesh",
)  # fmt: skip


def everywhere(model: GLM, corrupt_rows: Callable, *, vocabulary: bool) -> Objective:
    """The loss of `train_step.blank_infilling`, with the last layer computed at all positions.

    `vocabulary`: the logits too, [B T V], as the original does.
    """

    def objective(params: Any, rows: Any, dropout_key: Any = None, score: bool = False):
        batch = corrupt_rows(rows)
        inputs = batch.model_inputs() | {"target_index": None}
        options = {"deterministic": dropout_key is None, "rngs": None}
        if dropout_key is not None:
            options["rngs"] = {"dropout": dropout_key}
        if vocabulary:
            logits = model.apply({"params": params}, **inputs, **options)
            row = jnp.arange(len(batch.tokens))[:, None]
            live = batch.target_weights > 0
            scattered = jnp.zeros(batch.tokens.shape, jnp.int32)
            ids = scattered.at[row, batch.target_index].add(jnp.where(live, batch.target_ids, 0))
            weights = scattered.astype(jnp.float32).at[row, batch.target_index].add(batch.target_weights)
            loss = (token_losses(logits, ids) * weights).sum()
        else:
            hidden = model.apply({"params": params}, **inputs, head=False, **options)
            hidden = jnp.take_along_axis(hidden, batch.target_index[:, :, None], axis=1)

            def head(module, x):
                return module.word_embeddings.attend(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], -1)

            logits = model.apply({"params": params}, hidden, method=head)
            loss = (token_losses(logits, batch.target_ids) * batch.target_weights).sum()
        _, sums = jax.eval_shape(lambda: apply_loss(model, params, rows, batch))
        return loss, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), sums).replace(
            weight=jnp.zeros((3, 2)).at[0, 0].set(batch.target_weights.sum()), loss=jnp.zeros((3, 2)).at[0, 0].set(loss)
        )

    return objective


def run(config: ConfigDict, topology: str, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """One compilation for each choice, or for `only` these; per chip and step, keys as in `planning.estimate.plan`.

    Raises ValueError for an unknown choice, and as `planning.estimate.compile_step`.
    """
    choices = only or (*CHOICES, *UNDONE)
    if unknown := [name for name in choices if name not in CHOICES and name not in UNDONE]:
        raise ValueError(f"unknown choice {unknown[0]!r}; known: {'; '.join((*CHOICES, *UNDONE))}")
    table = {}
    for name in choices:
        own = config.copy_and_resolve_references()
        own.model.update(CHOICES.get(name, CHOICES["chunked, remat full"]))
        build = setup.make_setup if name in CHOICES else _undone(vocabulary=name == UNDONE[1])
        compiled = estimate.compile_step(own, topology, build=build)
        described = estimate.describe(compiled, topology)
        table[name] = {figure: described[figure] for figure in _FIGURES if figure in described}
    first = table[choices[0]]
    return {
        "value": first.get("hbm_bytes_per_step", 0) / 1e9,
        "unit": f"GB read and written a step and chip, {choices[0]}",
        "topology": topology,
        "batch_size": config.batch_size,
        "choices": table,
        "counting": "compiled for the topology, not run; HBM traffic and products as glm_jax/planning/hlo.py counts",
    }


def _undone(vocabulary):
    def build(config, schedule, mesh, rules, *, vocab_size, special, sentence_ends):
        usual = setup.make_setup(
            config, schedule, mesh, rules, vocab_size=vocab_size, special=special, sentence_ends=sentence_ends
        )
        corrupt_rows = make_corrupt(config.seed, usual.corruption, special, sentence_ends)
        objective = everywhere(usual.model, corrupt_rows, vocabulary=vocabulary)
        built = setup.make_setup_for(usual.model, objective, config, schedule, mesh, rules)
        return dataclasses.replace(usual, train_step=built.train_step)

    return build
