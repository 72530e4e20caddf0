"""`describe` prints the paper's figure 2, and `describe_text` a sentence of yours."""

import jax
import numpy as np
import pytest

from glm_jax.corruption.config import CorruptionConfig
from glm_jax.corruption.corrupt import corrupt
from glm_jax.corruption.layout import layout_example
from glm_jax.corruption.spans import UNUSED, Spans
from glm_jax.corruption.visualize import describe, describe_text
from glm_jax.model.batch import Slot, pack_objectives
from glm_jax.tokenizers import sentencepiece_tokenizer
from tests.helpers.corruption_records import SPECIAL


def _figure_2():
    """x1 … x6 with the blanks (x5 x6) and (x3), in this order, as in figure 2 of the paper."""
    config = CorruptionConfig(max_spans=4, max_targets=8)
    spans = Spans(np.array([4, 2, UNUSED, UNUSED], np.int32), np.array([2, 1, 0, 0], np.int32), np.ones(4, bool))
    tokens = np.array([21, 22, 23, 24, 25, 26, 0, 0], np.int32)
    one = layout_example(
        *map(jax.numpy.asarray, (tokens, np.int32(6), np.zeros(1, np.int32))), jax.tree.map(jax.numpy.asarray, spans),
        jax.numpy.ones(8), jax.numpy.int32(2), config=config, special=SPECIAL,
    )  # fmt: skip
    return jax.tree.map(lambda x: x[None], one)


def test_figure_2_of_the_paper():
    names = {2: "[M]", 5: "[S]", 6: "[E]", **{20 + i: f"x{i}" for i in range(1, 7)}}
    text = describe(_figure_2(), names.get)
    rows = [line.split() for line in text.splitlines()[2:12]]
    assert [r[2] for r in rows] == ["x1", "x2", "[M]", "x4", "[M]", "[S]", "x5", "x6", "[S]", "x3"]
    assert [r[3] for r in rows] == ["0", "1", "2", "3", "4", "4", "4", "4", "2", "2"]
    assert [r[4] for r in rows] == ["0"] * 5 + ["1", "2", "3", "1", "2"]
    assert [r[5] for r in rows] == ["·"] * 5 + ["x5", "x6", "[E]", "x3", "[E]"]
    assert [r[0] for r in rows] == ["A"] * 5 + ["B"] * 5
    matrix = [line.split()[-1] for line in text.splitlines()[13:]]
    assert matrix == ["#####|....."] * 5 + ["#####|" + "#" * n + "." * (5 - n) for n in range(1, 6)]


@pytest.mark.thorough
def test_subsequences_do_not_attend_to_each_other():
    batch = _figure_2()
    batch = batch.replace(segment_ids=np.array([[1, 1, 2, 2, 2, 2, 2, 2, 1, 1, *[0] * (batch.tokens.shape[1] - 10)]]))
    matrix = [line.split()[-1] for line in describe(batch, str).splitlines()[13:]]
    assert matrix[:3] == ["##...|.....", "##...|.....", "..###|....."]
    assert matrix[5:] == ["..###|#....", "..###|##...", "..###|###..", "##...|...#.", "##...|...##"]


def test_packed_examples_are_described_one_by_one():
    one = _figure_2()
    one = one.replace(slots=(Slot(one.tokens.shape[1], one.target_ids.shape[1]),))
    alone = describe(one, str)
    assert describe(pack_objectives([one, one]), str) == f"slot 1, {alone}\n\nslot 2, {alone}"


def test_a_row_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="row 3 is not in a batch of 1"):
        describe(_figure_2(), str, row=3)


def test_long_examples_have_the_rule_instead_of_the_mask():
    text = describe(_figure_2(), str, max_mask_size=9)
    assert text.splitlines()[-1] == "attention mask: query i attends to columns 0 … max(5, i + 1) - 1"


@pytest.fixture(scope="module")
def tokenizer():
    return sentencepiece_tokenizer.train(
        [f"The Lord said to number {i}, go up to the land." for i in range(200)], vocab_size=300, byte_fallback=True
    )


def test_a_sentence_is_tokenized_corrupted_and_described(tokenizer):
    sentence = "The Lord said to number 7, go up to the land. The Lord said go."
    text = describe_text(sentence, tokenizer, seed=3)
    assert text.startswith("objective blank_infilling: Part A ")
    ids = np.array([[tokenizer.special.cls, *tokenizer.encode(sentence), tokenizer.special.eos]], np.int32)
    batch = corrupt(
        jax.random.key(3), ids, np.full(1, ids.size, np.int32), np.zeros(1, np.uint32), config=CorruptionConfig(),
        special=tokenizer.special,
    )  # fmt: skip
    assert text == describe(batch, tokenizer)
    assert describe_text(sentence, tokenizer, seed=3, index=1) != text
    config = CorruptionConfig(1, 1, 1, pack_objectives=True, task_masks=True)
    packed = describe_text(sentence, tokenizer, config=config)
    assert [line.split(":")[0] for line in packed.splitlines() if line.startswith("slot")] == [
        "slot 1, objective blank_infilling", "slot 2, objective sentence", "slot 3, objective document",
    ]  # fmt: skip


def test_an_empty_text_has_no_targets(tokenizer):
    assert describe_text("", tokenizer).startswith("objective blank_infilling: Part A 2 tokens, Part B 0, 0 targets")
