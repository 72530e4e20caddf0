"""Arguments that do not belong together are refused in one line that names them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.model.attention import attention
from glm_jax.model.batch import Batch, Slot, check_batch, pack_objectives
from glm_jax.model.config import GLMConfig
from glm_jax.model.fused_cross_entropy import fused_linear_cross_entropy
from glm_jax.model.losses import loss
from glm_jax.model.transformer import GLM, init_params
from tests.helpers.typechecker import unchecked

CONFIG = GLMConfig(32, 2, 16, 2, 24, dtype="float32")
B, T, K = 2, 8, 3


def batch(**changes):
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    fields = {
        "tokens": positions + 1, "position_ids": positions, "block_position_ids": 0 * positions,
        "prefix_lengths": np.array([5, 4], np.int32), "target_index": np.array([[5, 6, 7], [4, 5, 0]], np.int32),
        "target_ids": np.full((B, K), 3, np.int32), "target_weights": np.array([[1, 1, 1], [1, 1, 0]], np.float32),
        "target_source": np.zeros((B, K), np.int32), "objective": np.zeros(B, np.int32),
    }  # fmt: skip
    return Batch(**fields | changes)


def run(**changes):
    """Traces the model: nothing is compiled."""
    shapes = jax.eval_shape(lambda: init_params(CONFIG, jax.random.key(0)))
    inputs = batch().model_inputs() | changes
    options = {name: inputs.pop(name) for name in list(inputs) if isinstance(inputs[name], bool | tuple)}
    return jax.eval_shape(lambda p, i: GLM(CONFIG).apply({"params": p}, **i, **options), shapes, inputs)


ids = np.zeros((B, T), np.int32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": ids[0]}, r"tokens has shape \(8,\), but must be \[B T\] = \(B, T\)"),
        ({"tokens": np.zeros((B, T), np.float32)}, "tokens has dtype float32, but must be integers"),
        ({"position_ids": ids[:1]}, r"^position_ids has shape \(1, 8\), but must be \[B T\] = \(2, 8\)"),
        ({"position_ids": ids * 1.0}, r"position_ids has dtype float\d+, but must be integers"),
        ({"block_position_ids": ids[:, :1]}, r"block_position_ids has shape \(2, 1\)"),
        ({"prefix_lengths": np.array([5, 4, 3])}, r"prefix_lengths has shape \(3,\), but must be \[B\] = \(2,\)"),
        ({"prefix_lengths": np.int32(5)}, r"prefix_lengths has shape \(\)"),
        ({"prefix_lengths": np.array([5.0, 4.0])}, r"prefix_lengths has dtype float\d+"),
        ({"target_index": ids[:1, :3]}, r"target_index has shape \(1, 3\), but must be \[B K\] = \(2, K\)"),
        ({"segment_ids": ids[:, :4]}, r"segment_ids has shape \(2, 4\)"),
        ({"input_embeddings": np.zeros((B, T, 4), np.float32)}, r"input_embeddings has shape \(2, 8, 4\).*8, 16\)"),
        ({"prefix": (np.zeros((2, 1, 3, 2, 8)),)}, "prefix has 1 parts, but must be a pair"),
        ({"prefix": 2 * (np.zeros((1, 1, 3, 2, 8)),)}, r"prefix keys has shape \(1, 1, 3, 2, 8\).*\(2, 1, P, 2, 8\)"),
        ({"prefix": (np.zeros((2, 1, 3, 2, 8)), np.zeros((2, 2, 4, 2, 8)))}, r"prefix values has shape \(2, 2, 4"),
        ({"slots": (Slot(4, 2), Slot(3, 1))}, "must add up to those of a row, 8"),
        ({"slots": (Slot(4, 2), Slot(4, 1))}, r"prefix_lengths has shape \(2,\), but must be \[B P\] = \(2, 2\)"),
        ({"slots": (Slot(8, 2),)}, r"target_index has shape \(2, 3\), but must be \[B K\] = \(2, 2\)"),
        (
            {"slots": (Slot(4, 2), Slot(4, 1)), "prefix_lengths": ids[:, :2], "output_attentions": True},
            "output_attentions needs one example a row, not 2 slots",
        ),
        ({"output_keys_values": True}, "leave out target_index"),
        ({"cache": (), "output_attentions": True}, "cache takes no target_index and no output_attentions"),
    ],
)  # fmt: skip
def test_the_model_names_the_argument(changes, message):
    run()
    with unchecked(), pytest.raises(ValueError, match=message) as raised:
        run(**changes)
    assert "\n" not in str(raised.value)


def test_one_prefix_length_does_not_stand_for_two_rows():
    """They used to be merged into one, in which row 0 leaked into row 1."""
    with unchecked(), pytest.raises(ValueError, match=r"prefix_lengths has shape \(1,\), but must be \[B\] = \(2,\)"):
        run(prefix_lengths=np.array([5], np.int32))


def test_attention_probabilities_need_dense_attention():
    config = dataclasses.replace(CONFIG, attention_backend="chunked")
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    inputs = jax.tree.map(jnp.asarray, batch().model_inputs())
    with pytest.raises(ValueError, match=r"'chunked' does not form attention probabilities here: .*'dense'"):
        jax.eval_shape(lambda p: GLM(config).apply({"params": p}, **inputs, output_attentions=True), shapes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": jnp.zeros((B, T, 2))}, r"q has shape \(2, 8, 2\), but must be \[B Q N H\]"),
        ({"k": jnp.zeros((B, T, 3, 4))}, r"k has shape \(2, 8, 3, 4\), but must be \[B T N H\] = \(2, T, 2, 4\)"),
        ({"v": jnp.zeros((B, 7, 2, 4))}, r"v has shape \(2, 7, 2, 4\)"),
        ({"prefix_lengths": jnp.array([5])}, r"prefix_lengths has shape \(1,\), but must be \[B\] = \(2,\)"),
        ({"query_index": jnp.zeros((1, T), jnp.int32)}, r"query_index has shape \(1, 8\)"),
        ({"segment_ids": jnp.zeros((B, 5), jnp.int32)}, r"segment_ids has shape \(2, 5\)"),
        ({"prefix": 2 * (jnp.zeros((3, 2, 2, 4)),)}, r"prefix keys has shape \(3, 2, 2, 4\).*\(2, P, 2, 4\)"),
    ],
)
def test_attention_names_the_argument(changes, message):
    arguments = {name: jnp.zeros((B, T, 2, 4)) for name in "qkv"} | {"prefix_lengths": jnp.array([5, 4])}
    with unchecked(), pytest.raises(ValueError, match=message):
        attention(**arguments | changes)


@pytest.mark.thorough
def test_losses_name_the_argument():
    params = init_params(GLM(CONFIG), jax.random.key(0))
    with unchecked():
        with pytest.raises(ValueError, match=r"target_ids has shape \(2, 2\), but must be \[B K\] = \(2, 3\)"):
            loss(GLM(CONFIG), params, batch(target_ids=np.zeros((B, 2), np.int32)))
        with pytest.raises(ValueError, match="target_weights has dtype int32, but must be floats"):
            loss(GLM(CONFIG), params, batch(target_weights=np.ones((B, K), np.int32)))
        with pytest.raises(ValueError, match=r"table has shape \(32, 8\)"):
            fused_linear_cross_entropy(
                jnp.zeros((B, K, 16)), jnp.zeros((32, 8)), jnp.zeros((B, K), jnp.int32), jnp.ones((B, K))
            )


def changed(name, place, value):
    array = np.array(getattr(batch(), name))
    array[place] = value
    return {name: array}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (changed("tokens", (1, 3), 32), r"tokens\[1, 3\] is 32, outside the vocabulary \(0 to 31\)"),
        (changed("tokens", (0, 0), -1), r"tokens\[0, 0\] is -1, outside the vocabulary"),
        ({"tokens": np.ones((B, T), np.float32)}, "tokens has dtype float32, but must be integers"),
        (changed("prefix_lengths", 1, 9), r"prefix_lengths\[1\] is 9, outside the row \(0 to 8\)"),
        (changed("prefix_lengths", 0, -1), r"prefix_lengths\[0\] is -1, outside the row"),
        (changed("position_ids", (0, 2), 25), "position_ids reach from 0 to 25, but the table holds positions 0 to 24"),
        (changed("block_position_ids", (0, 2), -3), "block_position_ids reach from -3 to 0"),
        (changed("target_index", (0, 1), 8), r"target_index\[0, 1\] is 8, outside the columns of its row \(0 to 7\)"),
        (changed("target_ids", (0, 1), 40), r"target_ids\[0, 1\] is 40, outside the vocabulary"),
        ({"target_ids": np.zeros((B, 2), np.int32)}, r"target_ids has shape \(2, 2\), but must be \[B K\] = \(2, 3\)"),
        (changed("target_weights", (1, 2), -0.5), r"target_weights\[1, 2\] is -0.5, outside finite weights"),
        (changed("target_weights", (1, 2), np.nan), r"target_weights\[1, 2\] is nan, outside finite weights"),
        (changed("target_weights", (1, 2), np.inf), r"target_weights\[1, 2\] is inf, outside finite weights"),
        ({"segment_ids": ids - 1}, r"segment_ids\[0, 0\] is -1, outside 0"),
        ({"slots": (Slot(8, 3, 4),)}, r"prefix_lengths\[0\] is 5, outside the row \(0 to 4\)"),
    ],
)  # fmt: skip
def test_values_of_a_batch(changes, message):
    with pytest.raises(ValueError, match=message) as raised:
        check_batch(batch(**changes), CONFIG)
    assert "\n" not in str(raised.value)


def test_good_batches_pass():
    check_batch(batch(), CONFIG)
    check_batch(jax.tree.map(jnp.asarray, batch(segment_ids=ids)), CONFIG)
    packed = pack_objectives(2 * [batch(slots=(Slot(T, K),))])
    check_batch(packed, CONFIG)
    index = np.array(packed.target_index)
    index[0, 4] = 3  # a column of the first slot for a target of the second
    with pytest.raises(ValueError, match=r"target_index\[0, 1\] is 3, outside the columns of its row \(8 to 15\)"):
        check_batch(packed.replace(target_index=index), CONFIG)
