"""Soft prompts of the original (PromptSpell; P-tuning, Liu et al. 2021, arXiv 2103.10385): vectors in place of tokens.

Parameters of a prompt of P vectors of width D:
  embedding [P D]
  lstm/layer_{0,1}/{forward,backward}/{input,hidden}/{kernel,bias}   two bidirectional layers of hidden width D
  mlp/{first,second}/{kernel,bias}                                   Linear, ReLU, Linear
Which of them are there says how the vectors are made: the embedding as it is, through the MLP, or LSTM then MLP.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_HIGHEST = jax.lax.Precision.HIGHEST


def prompt_vectors(params: Mapping[str, Any]) -> Float[Array, "P D"]:
    """The vectors of a soft prompt, float32. Raises ValueError for an LSTM without its MLP."""
    vectors = jnp.asarray(params["embedding"])
    if "lstm" in params:
        if "mlp" not in params:
            raise ValueError("a soft prompt with an LSTM needs its MLP, which maps both directions back to the width")
        for name in sorted(params["lstm"]):
            layer = params["lstm"][name]
            backward = _lstm(layer["backward"], vectors[::-1])[::-1]
            vectors = jnp.concatenate([_lstm(layer["forward"], vectors), backward], axis=-1)
    if "mlp" in params:
        vectors = _linear(params["mlp"]["second"], nn.relu(_linear(params["mlp"]["first"], vectors)))
    return vectors


@contextlib.contextmanager
def soft_prompt(vectors: Float[Array, "P D"], positions: Int[Array, "B P"]) -> Iterator[None]:
    """Inside, a GLM reads `vectors` instead of the word embeddings at the columns `positions` of each row.

    with soft_prompt(prompt_vectors(prompt), positions):
        logits = model.apply({"params": params}, tokens, …)
    """

    def replace(call, args, kwargs, context):
        embedded = call(*args, **kwargs)
        if context.module.name != "word_embeddings" or context.method_name != "__call__":
            return embedded
        rows = jnp.arange(positions.shape[0])[:, None]
        return embedded.at[rows, positions].set(vectors[None].astype(embedded.dtype))

    with nn.intercept_methods(replace):
        yield


def _linear(params, x):
    return jnp.dot(x, params["kernel"], precision=_HIGHEST) + params["bias"][None]


def _lstm(params, inputs):
    """One direction over [P I] -> [P D], gates in PyTorch's order: input, forget, cell, output."""
    gates = _linear(params["input"], inputs)
    width = gates.shape[-1] // 4

    def step(state, gate):
        hidden, cell = state
        gate = gate + _linear(params["hidden"], hidden[None])[0]
        take, keep, new, show = jnp.split(gate, 4)
        cell = nn.sigmoid(keep) * cell + nn.sigmoid(take) * jnp.tanh(new)
        hidden = nn.sigmoid(show) * jnp.tanh(cell)
        return (hidden, cell), hidden

    zeros = jnp.zeros(width, gates.dtype)
    return jax.lax.scan(step, (zeros, zeros), gates)[1]
