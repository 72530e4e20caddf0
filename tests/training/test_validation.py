"""The n-gram baselines score the very targets of the model, whatever row of the model those stand in."""

import jax
import numpy as np
import pytest

from glm_jax.corruption.config import CorruptionConfig
from glm_jax.corruption.corrupt import corrupt
from glm_jax.data.ngram import NgramBaseline
from glm_jax.training import validation
from glm_jax.training.setup import PretrainingSetup
from glm_jax.training.train_step import TokenRows
from tests.helpers.corruption_records import SPECIAL

LENGTH, ROWS, CLS = 48, 12, 99


class Pairs(NgramBaseline):
    """Stands in for counts of pairs: checks what it is asked, and answers with the same loss for all."""

    def __init__(self):
        """Counts nothing."""

    def unigram_nll(self, target):
        """Of text: its tokens count up."""
        return np.ones(target.size)

    def nll(self, previous, target, add_k=0.0):
        """Of text behind the token that precedes it in the corpus; end tokens are asked about too, and not used."""
        assert ((target == previous + 1) | (previous == CLS) | (target == SPECIAL.end)).all()
        return np.full(target.size, 2.0)


@pytest.mark.thorough
@pytest.mark.parametrize("pack_objectives", [False, True])
def test_baselines_know_the_token_before_each_target(pack_objectives):
    config = CorruptionConfig(1, 0, 1, pack_objectives=pack_objectives, document_suffix_prob=1.0)
    tokens = 100 + np.arange(ROWS * LENGTH, dtype=np.int32).reshape(ROWS, LENGTH)
    rows = TokenRows(tokens, np.full(ROWS, LENGTH, np.int32), np.arange(ROWS, dtype=np.uint32))

    def corrupted(rows):
        return corrupt(jax.random.key(0), rows.tokens, rows.lengths, rows.index, config=config, special=SPECIAL)

    setup = object.__new__(PretrainingSetup)  # of which only this function is asked
    object.__setattr__(setup, "corrupt_held_out", corrupted)
    found = validation.baselines(setup, Pairs(), iter([rows]), cls=CLS)
    # A document's answer has no end token here, so its losses are those of the text.
    assert found["document_unigram"] == pytest.approx(1.0)
    assert found["document_bigram"] == pytest.approx(2.0)
    assert 1.0 < found["blank_infilling_bigram"] - found["blank_infilling_unigram"] + 1.0 < 2.0
    slots = jax.device_get(corrupted(rows)).unpack()
    objectives = np.concatenate([batch.objective for batch in slots])
    assert not pack_objectives or np.bincount(objectives).tolist() == [ROWS // 2, 0, ROWS // 2]
