"""Choices of a step: what they undo changes no loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.cli.configs import read_config
from glm_jax.corruption.config import CorruptionConfig
from glm_jax.data.synthetic import SPECIAL, VOCABULARY, random_rows
from glm_jax.distributed.sharding import unbox
from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import GLM, init_params
from glm_jax.training.train_step import TokenRows, blank_infilling, make_corrupt
from tools import choices


@pytest.mark.parametrize("vocabulary", [True, False])
@pytest.mark.parametrize("laid_out", [CorruptionConfig(), CorruptionConfig(document=1.0, pack_objectives=True)])
@pytest.mark.thorough
def test_choices_undo_work_but_change_no_loss(vocabulary, laid_out):
    config = GLMConfig(
        vocab_size=VOCABULARY, num_layers=2, hidden_size=32, num_heads=2, max_position_embeddings=64,
        dtype="float32", hidden_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    model = GLM(config)
    tokens, ends = random_rows(2, 32)
    rows = TokenRows(jnp.asarray(tokens), jnp.full(2, 32), jnp.arange(2, dtype=jnp.uint32))
    corrupt_rows = make_corrupt(0, laid_out, SPECIAL, ends)
    params = unbox(init_params(config, jax.random.key(0)))
    usual = blank_infilling(model, corrupt_rows)
    undone = choices.everywhere(model, corrupt_rows, vocabulary=vocabulary)
    (loss, sums), (other, other_sums) = usual(params, rows), undone(params, rows)
    np.testing.assert_allclose(loss, other, rtol=1e-5)
    assert sums.weight.sum() == other_sums.weight.sum() > 0


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match="unknown choice 'sparse'; known: dense, remat full"):
        choices.run(read_config("configs/pretrain/glm_large.py"), "v5e:2x2", ("sparse",))
