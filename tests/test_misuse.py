"""What newcomers mistype in Python is answered in one line that names the value, the rule and the way out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import glm_jax
from glm_jax.distributed import sharding
from glm_jax.tuning.task import check_keys
from tests.helpers import tiny_run
from tests.methods.test_methods import CONFIG, MODEL, base, own, rows

SPECIAL = glm_jax.SpecialTokens(0, 1, 2, 3, 4, 5, 6, 7, 8)


def unchecked(function):
    """Without the run-time check of annotations that only the tests have."""
    return getattr(function, "__wrapped__", function)


class _Tokenizer(glm_jax.tokenizers.Tokenizer):
    """Of more tokens than the model has."""

    special, num_tokens, pad_vocab_to_multiple_of = SPECIAL, 100, 1
    encode = decode = id_to_token = fingerprint = files = settings = None


_Tokenizer.__abstractmethods__ = frozenset()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((MODEL, own(base()), _Tokenizer()), ValueError, "the tokenizer has 100 tokens, but the model 64"),
        ((own(base()), MODEL, SPECIAL), TypeError, r"Decoder takes \(model, params, tokenizer\), not dict and GLM"),
        ((MODEL, {"params": own(base())}, SPECIAL), ValueError, "params has params: pass the tree"),
    ],
)
def test_a_decoder_of_what_does_not_belong_together(arguments, error, message):
    with pytest.raises(error, match=message):
        unchecked(glm_jax.Decoder.__init__)(glm_jax.Decoder.__new__(glm_jax.Decoder), *arguments)


class _Float32MLP(nn.Module):
    config: glm_jax.GLMConfig

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.config.hidden_size)(x)


class _NarrowMLP(nn.Module):
    config: glm_jax.GLMConfig

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, dtype=self.config.dtype)(x)


def test_a_layer_that_changes_the_dtype_is_named():
    config = glm_jax.GLMConfig(64, 2, 32, 2, 40, dtype="bfloat16")
    model = glm_jax.GLM(config, mlp=_Float32MLP)
    with pytest.raises(ValueError, match=r"a layer \(Layer, Attention, _Float32MLP\) returns float32\[.*bfloat16"):
        glm_jax.init_params(model, jax.random.key(0))


def test_the_head_of_one_column_is_not_taken_for_a_width():
    model = glm_jax.GLM(CONFIG, mlp=_NarrowMLP)  # broadcasts
    params = nn.unbox(glm_jax.init_params(model, jax.random.key(0)))
    assert model.apply({"params": params}, **rows().model_inputs()).shape == (2, 4, 64)


def test_a_mesh_without_all_axes_is_named():
    mesh = jax.make_mesh((1,), ("data",))
    message = r"the mesh has the axes data, but not fsdp, tensor: make it with glm_jax\.distributed\.mesh\.make_mesh"
    boxed = jax.eval_shape(lambda key: glm_jax.init_params(MODEL, key), jax.random.key(0))
    for use in (sharding.batch_sharding, lambda mesh: sharding.state_shardings(boxed, mesh)):
        with pytest.raises(ValueError, match=message):
            use(mesh)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=message):
        sharding.logical_axis_rules()


@pytest.mark.parametrize("config", ["configs/pretrain/quickstart.py", {}, CONFIG])
def test_train_wants_a_config(config, tmp_path):
    with pytest.raises(TypeError, match=r"train takes a config such as glm_jax\.config\.pretrain\(\)"):
        unchecked(glm_jax.train)(config, tmp_path)


def test_train_wants_a_function(tmp_path):
    with pytest.raises(TypeError, match="on_log 3 must be a function"):
        unchecked(glm_jax.train)(glm_jax.config.pretrain(), tmp_path, on_log=3)


@pytest.mark.parametrize("duration", ["60", "60 stepz", "0 steps"])
def test_a_duration_is_checked_before_the_text_is_prepared(tmp_path, duration):
    config = tiny_run.config(tmp_path)
    config.train_duration = duration
    with pytest.raises(ValueError, match="train_duration"):
        glm_jax.train(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_accumulation_that_does_not_divide_the_batch():
    tx = optax.sgd(1e-2)
    step = jax.jit(glm_jax.make_train_step(MODEL, tx, grad_accumulation_steps=3))
    with pytest.raises(ValueError, match="a batch of 2 rows cannot be cut into grad_accumulation_steps = 3"):
        step(glm_jax.TrainState.create(own(base()), tx), rows())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_index": None}, "target_index is None, but every batch has it"),
        ({"objective": jnp.zeros(3, jnp.int32)}, r"objective has shape \(3,\)"),
        ({"target_source": jnp.zeros((2, 4))}, "target_source has dtype float32"),
    ],
)
def test_batches_that_cannot_be(change, message):
    glm_jax.check_batch(rows(), CONFIG)
    with pytest.raises(ValueError, match=message):
        glm_jax.check_batch(rows().replace(**change), CONFIG)
    with pytest.raises(ValueError, match=r"takes the model's GLMConfig, not GLM: pass model\.config"):
        unchecked(glm_jax.check_batch)(rows(), MODEL)
    with pytest.raises(ValueError, match="takes a Batch, not dict"):
        unchecked(glm_jax.check_batch)({}, CONFIG)


def test_the_known_optimizers_are_named():
    with pytest.raises(ValueError, match="unknown optimizer 'adam'; known: adamw, adafactor"):
        glm_jax.make_optimizer(own(base()), 1e-3, name="adam")


def test_fine_tuning_without_a_task_is_named():
    with pytest.raises(ValueError, match="tasks is empty"):
        check_keys(glm_jax.config.finetune())
    assert np.isfinite(float(glm_jax.loss(MODEL, own(base()), rows())))
