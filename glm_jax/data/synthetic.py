"""Random rows for benchmarks, plans and tests."""

import numpy as np

from glm_jax.corruption.config import CorruptionConfig
from glm_jax.tokenizers.special import SpecialTokens

SPECIAL = SpecialTokens(pad=0, eos=1, cls=2, mask=3, sentence_mask=4, generation_mask=5, start=6, end=7, block_mask=8)
VOCABULARY = 4096


def random_rows(batch: int, length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Full rows of random tokens, int32 [batch length], and which ids end a sentence, bool [VOCABULARY].

    Each row has two documents; 6 % of its tokens end a sentence. Raises ValueError for a length that no row can have.
    """
    CorruptionConfig().capacity(length)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(9, VOCABULARY, (batch, length)).astype(np.int32)
    cut = length // 3
    tokens[:, 0] = tokens[:, cut + 1] = SPECIAL.cls
    tokens[:, cut] = tokens[:, -1] = SPECIAL.eos
    return tokens, np.arange(VOCABULARY) >= 0.94 * VOCABULARY
