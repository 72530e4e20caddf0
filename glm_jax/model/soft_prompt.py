"""Soft prompts of the original (PromptSpell; P-tuning, Liu et al. 2021, arXiv 2103.10385): vectors in place of tokens.

Parameters of a prompt of P vectors of width D:
  embedding [P D]
  lstm/layer_{0,1}/{forward,backward}/{input,hidden}/{kernel,bias}   two bidirectional layers of hidden width D
  mlp/{first,second}/{kernel,bias}                                   Linear, ReLU, Linear
The parameters that are present decide how the vectors are made: the embedding alone, through the MLP, or through LSTM
and MLP.
"""

from collections.abc import Mapping
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


def prompt_length(params: Mapping[str, Any]) -> int:
    """P, the vectors of the soft prompt under "prompt" in a model's parameters; 0 without one."""
    return params["prompt"]["embedding"].shape[0] if "prompt" in params else 0


def soft_prompt_embeddings(
    model: nn.Module,
    params: Any,
    tokens: Int[Array, "B T"],
    vectors: Float[Array, "P D"],
    positions: Int[Array, "B P"],
) -> Float[Array, "B T D"]:
    """The word embeddings of `tokens`, with `vectors` at the columns `positions` of each row.

    They are the `input_embeddings` of a `GLM`, in its compute dtype; a gradient reaches the vectors through them:

    embeddings = soft_prompt_embeddings(model, params, batch.tokens, prompt_vectors(prompt), positions)
    logits = model.apply({"params": params}, **batch.model_inputs(), input_embeddings=embeddings)
    """
    embedded = model.apply({"params": params}, tokens, method="embed")
    rows = jnp.arange(positions.shape[0])[:, None]
    return embedded.at[rows, positions].set(vectors[None].astype(embedded.dtype))


def _linear(params, x):
    return jnp.dot(x, params["kernel"], precision=_HIGHEST) + params["bias"][None]


def _lstm(params, inputs):
    """One direction over [P I] -> [P D], gates in PyTorch's order: input, forget, cell, output."""
    gates = _linear(params["input"], inputs)
    width = gates.shape[-1] // 4

    def step(state, gate):
        hidden, cell = state
        gate = gate + _linear(params["hidden"], hidden[None])[0]
        input_gate, forget_gate, new, output_gate = jnp.split(gate, 4)
        cell = nn.sigmoid(forget_gate) * cell + nn.sigmoid(input_gate) * jnp.tanh(new)
        hidden = nn.sigmoid(output_gate) * jnp.tanh(cell)
        return (hidden, cell), hidden

    zeros = jnp.zeros(width, gates.dtype)
    return jax.lax.scan(step, (zeros, zeros), gates)[1]
