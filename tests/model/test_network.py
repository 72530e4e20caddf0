"""What the network takes and gives beside tokens and logits, and the parts that can be replaced."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.decoding import steps
from glm_jax.model.config import GLMConfig
from glm_jax.model.layers import Linear
from glm_jax.model.soft_prompt import soft_prompt_embeddings
from glm_jax.model.transformer import GLM, init_params
from glm_jax.model.transformer_layer import Attention
from glm_jax.model.visibility import visible

CONFIG = GLMConfig(32, 3, 16, 2, 24, dtype="float32", init_std=0.3, hidden_dropout=0.0, attention_dropout=0.0)
B, T = 2, 9
PREFIXES = np.array([4, 0], np.int32)


def row(seed=0, length=T):
    rng = np.random.default_rng(seed)
    positions = np.tile(np.arange(length, dtype=np.int32), (B, 1))
    return rng.integers(0, 32, (B, length)).astype(np.int32), positions, positions % 4, PREFIXES


@functools.cache
def params(model=None):
    model = model or GLM(CONFIG)
    return nn.unbox(jax.jit(functools.partial(init_params, model))(jax.random.key(0)))


STATIC = ("head", "output_hidden_states", "output_attentions", "output_keys_values")


@functools.partial(jax.jit, static_argnums=0, static_argnames=STATIC)
def apply(model, params, *arrays, **options):
    return model.apply({"params": params}, *arrays, **options)


# --- soft prompts


def test_input_embeddings_take_the_place_of_tokens():
    tokens, *rest = row()
    table = params()["word_embeddings"]["embedding"]
    other = tokens.copy()
    other[:, 3] = (other[:, 3] + 1) % 32
    columns = jnp.full((B, 1), 3)
    embeddings = soft_prompt_embeddings(GLM(CONFIG), params(), jnp.asarray(tokens), table[other[0, 3]][None], columns)
    actual = apply(GLM(CONFIG), params(), np.zeros_like(tokens), *rest, input_embeddings=embeddings)
    expected = apply(GLM(CONFIG), params(), other, *rest)
    np.testing.assert_allclose(actual[0], expected[0], atol=1e-6)
    assert np.abs(actual[0] - apply(GLM(CONFIG), params(), tokens, *rest)[0]).max() > 0.01


# --- trained keys and values


def test_a_prefix_is_what_earlier_tokens_leave():
    """Causal rows: their first tokens, or those tokens' keys and values in every layer."""
    tokens, positions, blocks, _ = row(length=12)
    causal, first = np.zeros(B, np.int32), [a[:, :3] for a in (tokens, positions, blocks)]
    expected = apply(GLM(CONFIG), params(), tokens, positions, blocks, causal)[:, 3:]
    _, outputs = apply(GLM(CONFIG), params(), *first, causal, output_keys_values=True)
    keys, values = outputs.keys_values  # [Y B N H C], [Y B N C H]
    prefix = jnp.transpose(keys, (0, 1, 4, 2, 3)), jnp.swapaxes(values, 2, 3)
    rest = [a[:, 3:] for a in (tokens, positions, blocks)]
    for scan in (True, False):
        model = GLM(dataclasses.replace(CONFIG, scan_layers=scan))
        np.testing.assert_allclose(apply(model, params(), *rest, causal, prefix=prefix), expected, atol=2e-5)
    index = np.array([[1, 8], [4, 0]], np.int32)
    actual = apply(GLM(CONFIG), params(), *rest, causal, index, prefix=prefix)
    np.testing.assert_allclose(actual, np.take_along_axis(np.asarray(expected), index[..., None], 1), atol=2e-5)


def random_prefix(rows):
    shape = (CONFIG.num_layers, rows, 2, CONFIG.num_heads, CONFIG.head_width)
    return tuple(jnp.asarray(np.random.default_rng(i).normal(size=shape), jnp.float32) for i in (1, 2))


@pytest.mark.parametrize("unrolled", [True, False])
@pytest.mark.parametrize("trained", [True, False])
def test_cached_decoding_is_the_forward_pass(unrolled, trained):
    """With replaced parts, whose rotated keys the cache holds, and with a trained prefix or without."""
    model = GLM(CONFIG, attention=Rotary, mlp=Watched)
    prefix = random_prefix(1) if trained else None
    tokens, positions, blocks, _ = row()
    prefixes = np.array([6, 6], np.int32)
    expected = apply(model, params(model), tokens, positions, blocks, prefixes, prefix=prefix)[:, 6:]
    prepared = steps.prepare(params(model), config=CONFIG, unrolled=unrolled)
    arrays = [a[:, :6] for a in (tokens, positions, blocks)]
    context = jax.jit(functools.partial(steps.encode, model=model))(
        prepared, *arrays, prefixes, prefixes, prefix=prefix
    )
    cache, forward = steps.empty_answers(context, 1, 3), jax.jit(functools.partial(steps.forward, model=model))
    for step in range(3):
        newest = [a[:, 6 + step, None] for a in (tokens, positions, blocks)]
        logits, cache = forward(prepared, context, cache, jnp.int32(step), *newest)
        np.testing.assert_allclose(logits[:, 0], expected[:, step], atol=2e-5)


# --- what can be looked at


@pytest.mark.parametrize("scan", [True, False])
def test_hidden_states_and_attentions(scan):
    model = GLM(dataclasses.replace(CONFIG, scan_layers=scan))
    everything = {"output_hidden_states": True, "output_attentions": True}
    logits, outputs = apply(model, params(), *row(), **everything)
    np.testing.assert_allclose(logits, apply(model, params(), *row()), atol=1e-6)
    assert [a.shape for a in outputs.hidden_states] == 4 * [(B, T, 16)]
    assert [a.shape for a in outputs.attentions] == 3 * [(B, 2, T, T)]
    tokens, positions, blocks, _ = row()
    tables = [params()[f"{name}_embeddings"]["embedding"] for name in ("word", "position", "block_position")]
    embedded = sum(table[ids] for table, ids in zip(tables, (tokens, positions, blocks), strict=True))
    np.testing.assert_allclose(outputs.hidden_states[0], embedded, atol=1e-6)
    norm = params()["final_layernorm"]
    last = nn.LayerNorm(epsilon=1e-5).apply({"params": norm}, outputs.hidden_states[-1])
    np.testing.assert_allclose(last @ tables[0].T, logits, atol=1e-4)
    index = np.arange(T)
    mask = np.asarray(visible(PREFIXES[:, None, None], index[None, :, None], index[None, None]))
    for probabilities in outputs.attentions:
        np.testing.assert_allclose(probabilities.sum(-1), 1.0, atol=1e-5)
        assert (np.where(mask[:, None], 0.0, probabilities) == 0).all()
    assert outputs.keys_values is None
    targets = np.array([[1, 8], [4, 0]], np.int32)
    _, some = apply(model, params(), *row(), targets, **everything)
    np.testing.assert_allclose(some.hidden_states[2], outputs.hidden_states[2], atol=1e-6)
    for actual, whole, axis in (
        (some.hidden_states[3], outputs.hidden_states[3], 1), (some.attentions[2], outputs.attentions[2], 2),
    ):  # fmt: skip
        shape = [B if i == 0 else 2 if i == axis else 1 for i in range(actual.ndim)]
        expected = np.take_along_axis(np.asarray(whole), targets.reshape(shape), axis)
        np.testing.assert_allclose(actual, expected, atol=1e-5)


class Watched(nn.Module):
    """An MLP of one matrix that records what it reads."""

    config: GLMConfig

    @nn.compact
    def __call__(self, x):
        self.sow("intermediates", "largest", jnp.abs(x).max())
        return Linear((16,), (16,), ("embed", None), 0.3, self.config.dtype, name="only")(x)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.thorough
def test_intermediates_of_layers_are_stacked(scan):
    model = GLM(dataclasses.replace(CONFIG, scan_layers=scan), mlp=Watched)
    variables = {"params": params(model)}
    inputs = [jnp.asarray(a) for a in row()]
    plain = model.apply(variables, *inputs)
    logits, sown = model.apply(variables, *inputs, mutable=["intermediates"])
    np.testing.assert_allclose(logits, plain, atol=1e-6)
    assert jax.tree.map(np.shape, sown["intermediates"]) == {"layers": {"mlp": {"largest": ((3,),)}}}

    def is_mlp(module, method):
        return isinstance(module, Watched) and method == "__call__"

    targets = jnp.array([[1], [4]])
    _, captured = model.apply(variables, *inputs, targets, capture_intermediates=is_mlp, mutable=["intermediates"])
    shapes = jax.tree.map(np.shape, captured["intermediates"])
    assert shapes == {
        "layers": {"mlp": {"largest": ((2,),), "__call__": ((2, B * T, 16),)}},
        "last_layer": {"mlp": {"largest": ((),), "__call__": ((B, 16),)}},
    }
    some, every = (tree["intermediates"]["layers"]["mlp"]["largest"][0] for tree in (captured, sown))
    np.testing.assert_allclose(some, every[:2], rtol=1e-6)


# --- parts that can be replaced


class Rotary(Attention):
    """Rotates queries and keys by their positions: scores depend on differences only."""

    def encode_positions(self, q, k, inputs):
        def rotate(x, positions):
            angles = positions[:, :, None, None] * jnp.array([1.0, 0.3, 0.1, 0.03])[None, None, None]
            first, second = jnp.split(x, 2, axis=-1)
            cos, sin = jnp.cos(angles), jnp.sin(angles)
            return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

        return rotate(q, inputs.at_queries(inputs.position_ids)), rotate(k, inputs.position_ids)


def test_replaced_parts_have_their_own_parameters():
    model = GLM(CONFIG, attention=Rotary, mlp=Watched, absolute_positions=False)
    assert hash(model) == hash(GLM(CONFIG, attention=Rotary, mlp=Watched, absolute_positions=False))
    assert model != GLM(CONFIG)
    boxed = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
    kernel = boxed["layers"]["mlp"]["only"]["kernel"]
    assert (kernel.value.shape, kernel.names) == ((3, 16, 16), ("layers", "embed", None))
    assert set(boxed) == {"word_embeddings", "layers", "final_layernorm"}


def test_rotary_positions_are_relative():
    model = GLM(CONFIG, attention=Rotary, mlp=Watched, absolute_positions=False)
    tokens, positions, blocks, prefixes = row()
    logits = apply(model, params(model), tokens, positions, blocks, prefixes)
    shifted = apply(model, params(model), tokens, positions + 11, blocks, prefixes)
    np.testing.assert_allclose(shifted, logits, atol=1e-4)
    permuted = apply(model, params(model), tokens, positions[:, ::-1], blocks, prefixes)
    assert np.abs(permuted - logits).max() > 0.01
    index = np.array([[1, 8], [4, 0]], np.int32)
    some = apply(model, params(model), tokens, positions, blocks, prefixes, index)
    np.testing.assert_allclose(some, np.take_along_axis(np.asarray(logits), index[..., None], 1), atol=2e-5)
