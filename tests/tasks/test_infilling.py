"""Infilling against the original's rows: blanks at a ratio, answers in text order."""

import random

import pytest

from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example, read
from glm_jax.tasks.infilling import InfillingTask, blank_out, encode_infilling, fill_in, infilling_source
from glm_jax.tokenizers import sentencepiece_tokenizer
from tests.helpers.golden_tasks import Words, load, needs_vocabularies, target_weights, tokenizer

RECORDS = load("seq2seq_samples.json")


@needs_vocabularies
def test_infilling_golden():
    tokens, rng = tokenizer("bert"), random.Random(1234)
    for record in RECORDS:
        if not record["name"].startswith("blank/train"):
            continue
        text, answers = blank_out(record["source"], record["args"]["blank_maskratio"], rng)
        encoded = encode_infilling(tokens, text, answers)
        sample, width = record["sample"], record["args"]["src_seq_length"]
        n = encoded.prefix_length
        assert [*encoded.tokens[:n], *[0] * (width - n)] == sample["text"][:width]
        length = len(sample["text"]) - width  # of Part B; the original cuts what is longer
        for name, values in (
            ("tokens", sample["text"]), ("position_ids", sample["position_id"][0]),
            ("block_position_ids", sample["position_id"][1]),
        ):  # fmt: skip
            part_b = getattr(encoded, name)[n : n + length]
            assert part_b == values[width : width + len(part_b)], name
        weights = target_weights(encoded)[n : n + length]
        assert weights == sample["loss_mask"][width : width + len(weights)]
        targets = [t for t, w in zip(sample["target"], sample["loss_mask"], strict=True) if w]
        assert list(encoded.target_ids[: len(targets)]) == targets
        assert fill_in(text, answers) == record["source"]
    test = RECORDS[39]["sample"]
    encoded = encode_infilling(tokens, "what [MASK] best [MASK]", None)
    assert encoded.tokens == [t for i, t in enumerate(test["text"]) if i < 4 or i == 24]


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3, 0.4, 0.5])
def test_mask_ratios(ratio):
    rng, words = random.Random(0), [f"w{i}" for i in range(40)]
    text, answers = blank_out(" ".join(words), ratio, rng)
    assert sum(len(answer.split()) for answer in answers) == int(ratio * 40)
    assert text.count("[MASK]") == len(answers)
    assert "[MASK] [MASK]" not in text
    assert fill_in(text, answers) == " ".join(words)


def test_infilling_errors():
    with pytest.raises(TaskError, match=r"mask ratio 0.1 takes no word of 3"):
        blank_out("a b c", 0.1, random.Random(0))
    with pytest.raises(TaskError, match="1 answers for 2 blanks"):
        encode_infilling(Words(), "a [MASK] b [MASK]", ["x"])
    with pytest.raises(TaskError, match="1 answers for 2 blanks"):
        fill_in("a [MASK] b [MASK]", ["x"])


def test_infilled_words_keep_the_space_that_their_mask_swallowed():
    """The targets of "a [MASK] d", filled with "b c", are what the vocabulary makes of " b c"."""
    texts = [" ".join(random.Random(i).choices(["mercy", "merciful", "shower", "bread"], k=40)) for i in range(20)]
    tokens = sentencepiece_tokenizer.train(texts, vocab_size=285, max_chunks=None)
    encoded = encode_infilling(tokens, "bread [MASK] shower", ["merciful mercy"])
    assert list(encoded.target_ids) == [*tokens.encode_continuation(" merciful mercy"), tokens.special.end]
    assert list(encoded.target_ids) != [*tokens.encode_continuation("merciful mercy"), tokens.special.end]


def test_generation_asks_for_the_same_blanks_as_training():
    task = InfillingTask("blank", lambda split: (), 0.4)
    example, words = Example("x", {"text": "a b c d e f g h i j"}), Words()
    trained, asked = (task.encode(words, example, training=training) for training in (True, False))
    assert trained.context == asked.context
    assert trained.blanks == asked.blanks == tuple(i for i, t in enumerate(asked.context) if t == words.special.mask)
    assert asked.tokens[asked.prefix_length :] == [words.special.start]
    assert asked.target_ids == ()


def test_reader(tmp_path):
    (tmp_path / "valid.txt").write_text("a _UNK b\n\n")
    assert read(infilling_source(str(tmp_path)), "validation")[0].fields == {"text": "a [UNK] b"}
