"""What the tests of filled text share."""

import jax
import pytest

from glm_jax import tokenizers
from glm_jax.distributed.sharding import unbox
from glm_jax.interop import Pretrained
from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import GLM, init_params
from tests.helpers import tiny_run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained model whose answers end sometimes, with parameters and a tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tiny_run.write_corpus(folder)
    tokenizer = tokenizers.load(folder / "tokenizer")
    config = GLMConfig(tokenizer.vocab_size, 2, 32, 2, 48, dtype="float32", init_std=0.3)
    return Pretrained(GLM(config), unbox(init_params(config, jax.random.key(0))), tokenizer)
