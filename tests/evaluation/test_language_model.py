"""Windows, LAMBADA and multiple choice against the original's rows, and the sums they give."""

import math

import numpy as np
import pytest

from glm_jax.evaluation import language_model as lm
from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import GLM
from glm_jax.tasks.errors import TaskError
from glm_jax.tokenizers.special import SpecialTokens
from tests.helpers.golden_params import from_state_dict
from tests.helpers.golden_tasks import (
    FOLDER,
    TOY,
    Words,
    assert_equal,
    load,
    needs_vocabularies,
    rows_of_candidates,
    tokenizer,
)  # fmt: skip

GPT2 = SpecialTokens(
    pad=50256, eos=50256, cls=50259, mask=50260, sentence_mask=50264, generation_mask=50263, start=50257, end=50258,
    block_mask=50265,
)  # fmt: skip
WINDOWS = load("lm_windows.json")
NAMES = {"ids": "text", "sep": "attention_mask", "targets": "target", "mask": "loss_mask"}


@pytest.mark.parametrize("case", WINDOWS["cases"], ids=lambda c: f"{c['overlapping_eval']}-{c['unidirectional']}")
def test_windows_golden(case, fidelity):
    samples = iter(case["samples"])
    for document, count in zip(WINDOWS["docs"], case["num_sequences"], strict=True):
        rows = list(
            lm.windows(
                GPT2, document, case["seq_length"], case["overlapping_eval"], unidirectional=case["unidirectional"]
            )
        )
        wanted = [sample for sample in (next(samples) for _ in range(count)) if any(sample["loss_mask"])]
        assert len(rows) == len(wanted)
        for row, sample in zip(rows, wanted, strict=True):
            assert_equal(row, sample, pad=GPT2.pad, **NAMES)
    assert next(samples, None) is None
    fidelity.compared("lm_windows.json", "all windows with a target")


@pytest.mark.parametrize("unidirectional", [False, True])
@pytest.mark.parametrize("overlap", [7, 16, None])
def test_every_token_is_predicted_once(unidirectional, overlap):
    if unidirectional and overlap is None:
        return  # without overlap a window's first token is its prompt
    document = list(range(1000, 1123))
    rows = lm.windows(GPT2, document, 32, overlap, unidirectional=unidirectional)
    assert [token for row in rows for token in row.target_ids] == document[1:]


PASSAGES = (
    "in my palm is a clear stone , and inside it is a small ivory statue . a guardian angel . `` if you 're going to "
    "be out at night getting hit by cars , you might as well have some backup . '' i look at him , feeling stunned . "
    "like this is some sort of sign . but as i stare at harlin , his mouth curved in a confident grin , i do n't care "
    "about signs",
    "give me a minute to change and i 'll meet you at the docks . '' she 'd forced those words through her teeth . "
    "shane was smirking as she headed down the docks",
)


@needs_vocabularies
@pytest.mark.parametrize("number", range(4))
def test_lambada_golden(number):
    record = load("lambada_samples.json")[number]
    tokens = tokenizer(record["tokenizer"])
    for text, sample, label in zip(PASSAGES, record["samples"], record["labels"], strict=True):
        row = lm.lambada_row(tokens, text, 128, unidirectional=record["unidirectional"])
        assert_equal(row, sample, pad=tokens.special.pad, **NAMES)
        assert list(row.target_ids[-len(label) :]) == label


def test_lambada_is_cut_on_the_left():
    words = Words()
    row = lm.lambada_row(words, " ".join(f"w{i}" for i in range(50)) + " end", 20)
    assert len(row) == 20
    assert row.tokens[1] == words.encode("w34")[0]
    with pytest.raises(TaskError, match="needs a context and a last word"):
        lm.lambada_row(words, "one", 20)
    with pytest.raises(TaskError, match="rows of 4 tokens leave no room"):
        lm.lambada_row(words, "a b", 4)


CHOICES = [
    {"inputs_pretokenized": "The capital of France is [MASK].", "choices_pretokenized": ["Paris", " New York"]},
    {"inputs_pretokenized": "One plus one is", "choices_pretokenized": [" two", " twenty"]},
]


@needs_vocabularies
@pytest.mark.parametrize("record", [r for r in load("pvp_samples.json") if "multichoice" in r["task"]])
def test_choices_golden(record):
    tokens, sample = tokenizer("gpt2"), record["sample"]
    unidirectional, number = record["task"].removeprefix("multichoice_uni").split("_")
    pairs = zip(sample["target"], sample["logit_mask"], strict=True)
    choices = [[t for t, w in zip(*pair, strict=True) if w] for pair in pairs]
    fields = {**CHOICES[int(number)], "choices_pretokenized": [tokens.decode(ids) for ids in choices]}
    rows = lm.encode_choices(tokens, fields, record["seq_length"], unidirectional=unidirectional == "1")
    names = {"ids": "text", "sep": "mask", "targets": "target", "mask": "logit_mask"}
    for i, row in enumerate(rows_of_candidates(rows)):
        assert_equal(row, {key: value[i] for key, value in sample.items() if type(value) is list}, pad=50256, **names)


def test_choices_keep_the_blank():
    words = Words()
    fields = {"inputs_pretokenized": "[MASK] " + "x y z " * 9, "choices_pretokenized": ["a"]}
    with pytest.raises(TaskError, match="lose the blank"):
        lm.encode_choices(words, fields, 12)


@pytest.mark.thorough
def test_losses_do_not_depend_on_the_batch():
    with np.load(FOLDER / "ckpt_A.npz") as file:
        params = from_state_dict(dict(file), 4)
    model = GLM(GLMConfig(128, 3, 64, 4, 64, dtype="float32"))
    document = np.random.default_rng(0).integers(10, 128, 70).tolist()
    rows = list(lm.windows(TOY, document, 32, 8))
    one, many = (lm.row_losses(model, params, rows, pad=0, batch_size=size) for size in (1, 4))
    np.testing.assert_allclose([r.loss for r in one], [r.loss for r in many], rtol=1e-6)
    found = lm.perplexity(one, words=36)
    total = sum(r.loss for r in one)
    assert found["tokens"] == 69
    assert found["token_perplexity"] == pytest.approx(math.exp(total / 69))
    assert found["word_perplexity"] == pytest.approx(math.exp(min(20, total / 35)))


def test_bad_windows():
    with pytest.raises(TaskError, match="overlap 40 must lie between 1 and length - 1 = 31"):
        list(lm.windows(TOY, [1, 2], 32, 40))
