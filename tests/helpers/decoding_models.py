"""The golden models of the decoding tests, and compiled forward passes of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import GLM
from glm_jax.tokenizers.special import SpecialTokens
from tests.helpers.golden_params import from_state_dict
from tests.helpers.paths import GOLDEN

CONFIG = GLMConfig(128, 3, 64, 4, 64, dtype="float32")
SPECIAL = SpecialTokens(pad=0, eos=0, cls=1, mask=2, sentence_mask=8, generation_mask=7, start=5, end=6, block_mask=9)


@functools.cache
def params(name):
    """Of ckpt_A, ckpt_G (sure of itself) or ckpt_H (ends its answers)."""
    with np.load(GOLDEN / f"ckpt_{name}.npz") as file:
        return jax.tree.map(jnp.asarray, from_state_dict(dict(file), CONFIG.num_heads))


@functools.partial(jax.jit, static_argnames="config")
def full(config, params, *batch):
    """Logits at every position by the whole forward."""
    return GLM(config).apply({"params": params}, *batch)


def prompts(count, seed=0, lengths=(5, 9), blanks=1):
    """Random Parts A with `blanks` masks each."""
    from glm_jax.decoding.prompts import EncodedPrompt

    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        ids = rng.integers(20, CONFIG.vocab_size, rng.integers(*lengths)).tolist()
        columns = sorted(rng.choice(np.arange(1, len(ids) - 1), blanks, replace=False).tolist())
        for column in columns:
            ids[column] = SPECIAL.mask
        made.append(EncodedPrompt((SPECIAL.cls, *ids[1:-1], SPECIAL.eos), tuple(columns)))
    return made


def keys(count, seed=0):
    """One PRNG key a prompt."""
    return jax.random.split(jax.random.key(seed), count)
