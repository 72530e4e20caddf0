"""Random rows, and corrupted batches of them read back."""

import jax
import numpy as np

from glm_jax.corruption.config import CorruptionConfig
from glm_jax.corruption.corrupt import corrupt
from tests.helpers.corruption_records import SENTENCE_END, SPECIAL


def text_rows(count, length, sentence_prob=None, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20, 1000, (count, length)).astype(np.int32)
    if sentence_prob:
        tokens[rng.random((count, length)) < sentence_prob] = SENTENCE_END
    tokens[:, 0], tokens[:, -1] = SPECIAL.cls, SPECIAL.eos
    return tokens


def sample(tokens, lengths=None, seed=0, chunk=2000, **config):
    config = CorruptionConfig(**config)
    lengths = np.full(len(tokens), tokens.shape[1]) if lengths is None else lengths
    ends = np.zeros(1000, bool)
    ends[SENTENCE_END] = True
    parts = [
        jax.device_get(
            corrupt(
                jax.random.key(seed),
                tokens[i : i + chunk],
                lengths[i : i + chunk].astype(np.int32),
                np.arange(i, i + len(tokens[i : i + chunk]), dtype=np.uint32),
                ends,
                config=config,
                special=SPECIAL,
            )
        )
        for i in range(0, len(tokens), chunk)
    ]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts), config


def decode(batch, i):
    """Spans of example i in the order of Part B as (start, length), read off the batch alone."""
    prefix, live = batch.prefix_lengths[i], batch.target_weights[i] > 0
    columns = batch.target_index[i][live]
    block, source = batch.block_position_ids[i][columns], batch.target_source[i][live]
    starts = np.flatnonzero(block == 1)
    sizes = np.diff([*starts, live.sum()])
    assert (columns == prefix + np.arange(live.sum())).all()
    return [(int(source[a]), int(n)) for a, n in zip(starts, sizes, strict=True)]
