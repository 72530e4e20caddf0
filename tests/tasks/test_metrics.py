"""Metrics and text cleaning against the original's values."""

import pytest

from glm_jax.tasks import metrics, seq2seq, superglue, text_cleaning
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example
from glm_jax.tasks.task import Prediction
from tests.helpers.golden_tasks import load

GOLDEN = load("text_and_metrics.json")
TEXT, METRICS = GOLDEN["text"], GOLDEN["metrics"]


def test_detokenizers():
    for cleaner in ("wikitext", "gigaword", "blank"):
        for before, after in TEXT[cleaner]:
            assert getattr(text_cleaning, f"detokenize_{cleaner}")(before) == after
    (source, expected), (target, expected_target) = TEXT["cnn_dm"]
    assert text_cleaning.detokenize_cnn_dm(source) == expected
    assert text_cleaning.detokenize_cnn_dm(target, target=True) == expected_target


def test_generated_text():
    for before, kind, after in TEXT["fix_tokenization"]:
        fix = {"cnn_dm": seq2seq.cnn_dm, "gigaword": seq2seq.gigaword, "cnn_dm_org": seq2seq.cnn_dm_original}[kind]
        assert fix("nowhere").fix(before) == after
    for before, after in TEXT["squad_fix"]:
        assert text_cleaning.fix_squad(before) == after
    for before, after in TEXT["blanklm_fix"]:
        assert text_cleaning.fix_blank(before) == after


def test_normal_forms():
    for before, after in TEXT["normalize_answer"]:
        assert metrics.normalize_answer(before) == after
    for before, after in TEXT["punctuation"]:
        assert superglue.standard_punctuation(before) == after


def prediction(choice, label, **fields):
    scores = tuple(float(i == choice) for i in range(4))
    return Prediction(Example("x", fields), ("a", "b", "c", "d"), scores, label, (False,) * 4)


def test_record():
    golden = METRICS["record"]
    predictions = [
        prediction(choice, None, **example) for choice, example in zip(golden["pred"], golden["examples"], strict=True)
    ]
    found = metrics.record(predictions)
    assert found == pytest.approx({"f1": golden["F1"], "em": golden["EM"]})


def test_multirc():
    golden = METRICS["multirc"]
    rows = zip(golden["pred"], golden["labels"], golden["qidx"], strict=True)
    found = metrics.multirc([prediction(p, label, question_id=q) for p, label, q in rows])
    expected = {"f1a": 100 * golden["f1"], "em": 100 * golden["em"], "accuracy": golden["acc"]}
    assert found == pytest.approx(expected)


def test_cb():
    golden = METRICS["cb"]
    rows = zip(golden["pred"], golden["labels"], strict=True)
    found = metrics.cb([prediction(p, label) for p, label in rows])
    assert found["f1_macro"] == pytest.approx(100 * golden["f1_macro"])
    assert found["accuracy"] == 60


def test_rouge():
    golden = METRICS["rouge"]
    hypotheses = [metrics.fix_summary(text) for text in golden["hyps"]]
    references = [text.replace(" [SEP] ", "\n") for text in golden["refs"]]
    found = metrics.rouge(hypotheses, references)
    for name, value in found.items():
        assert value == pytest.approx(100 * golden["scores"][f"cnn_dm/{name}"])


def test_bleu_and_f1():
    assert metrics.bleu(["the cat sat on the mat"], ["the cat sat on the mat"]) == {"bleu": pytest.approx(100)}
    half = metrics.bleu(["a b c d e f"], ["a b c d x y"], tokenize="none")["bleu"]
    assert half == pytest.approx(100 * (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert metrics.f1([prediction(1, 1), prediction(1, 0), prediction(0, 1)])["f1"] == pytest.approx(50)


def test_wsc_with_and_without_candidates():
    def said(choice, label):
        scores = tuple(float(i == choice) for i in range(2))
        return Prediction(Example("x", {"label": label}), ("a", "b"), scores, None, (False, False))

    assert metrics.wsc([said(0, True), said(1, False)]) == {"accuracy": 100}
    assert metrics.wsc([said(0, True), said(0, False)]) == {"accuracy": 50}
    alone = Prediction(Example("x", {"label": True}), ("a",), (0.0,), 0, (False,))
    assert metrics.wsc([alone]) == {"accuracy": 0}


def test_nothing_to_score():
    with pytest.raises(TaskError, match="no example has a label"):
        metrics.accuracy([prediction(0, None)])
    with pytest.raises(TaskError, match="1 hypotheses for 2 references"):
        metrics.bleu(["a"], ["a", "b"])
