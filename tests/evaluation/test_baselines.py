"""What needs no model: a linear model that learns, classes by their counts, sources copied."""

import itertools
import json

import numpy as np
import pytest

from glm_jax.evaluation import baselines
from glm_jax.evaluation.results import Options
from glm_jax.tasks import seq2seq
from glm_jax.tasks.task import find, from_settings
from tests.helpers.golden_tasks import DATA, needs_data


@pytest.mark.thorough
def test_the_linear_model_solves_its_problem():
    """Its gradient, written out here, is nothing where it stops; it knows an unseen text by its words."""
    known = ["good good film", "a film so bad", "very good", "bad bad bad", "fine film"]
    labels = np.array([1, 0, 1, 0, 1], np.int32)
    found = np.exp(baselines.linear_scores(known, labels, ["bad actors", "good actors", "x"], 2))
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert found[0, 0] > 0.6
    assert found[1, 1] > 0.6

    words = ["good", "bad", "film", "very", "so", "fine", ("good", "good"), ("good", "film"), ("film", "so")]
    words += [("so", "bad"), ("very", "good"), ("bad", "bad"), ("fine", "film")]
    texts = [["good"] * 2 + ["film"], ["film", "so", "bad"], ["very", "good"], ["bad"] * 3, ["fine", "film"]]
    counts = np.array([[[*t, *itertools.pairwise(t)].count(w) for w in words] for t in texts])
    values = np.where(counts, 1 + np.log(np.maximum(counts, 1)), 0) * (1 + np.log(6 / (1 + (counts > 0).sum(0))))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    kernel, bias = np.zeros((len(words), 2)), np.zeros(2)
    for _ in range(20000):  # plain gradient descent
        logits = values @ kernel + bias
        wrong = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(2)[labels]
        kernel -= 0.1 * (values.T @ wrong + baselines.PENALTY * kernel)
        bias -= 0.1 * wrong.sum(0)
    logits = bias[None] + kernel[words.index("bad")]
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(found[0], expected[0], atol=2e-3)


@pytest.mark.thorough
def test_of_a_task(tmp_path):
    rows = [{"text": f"word{i % 3} thing", "label": int(i % 3 == 0)} for i in range(9)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    settings = {"name": "t", "path": str(tmp_path / "{split}.jsonl"), "pattern": "{text} [MASK]."}
    task = from_settings(settings | {"verbalizer": {0: " no", 1: " yes"}})
    majority, linear = baselines.baselines(task, Options(split="test"))
    assert (majority.task, majority.split, majority.count) == ("t, majority", "test", 4)
    assert majority.numbers == {"accuracy": 50}
    assert {row["prediction"] for row in majority.predictions} == {"no"}
    assert linear.numbers == {"accuracy": 100}
    assert baselines.baselines(find("copa", str(tmp_path)), Options()) == []


def test_the_copy(tmp_path):
    (tmp_path / "test.source").write_text("a b c d e\nf g h i j\n")
    (tmp_path / "test.target").write_text("a b c d e\nf g h i k\n")
    (result,) = baselines.baselines(seq2seq.pairs("mine", str(tmp_path)), Options(split="test"))
    assert result.task == "mine, copy"
    assert 60 < result.numbers["rouge-2"] < 100
    assert result.predictions[1] == {
        "id": "test-1",
        "split": "test",
        "prediction": "f g h i j",
        "reference": "f g h i k",
    }


@needs_data
@pytest.mark.slow
def test_topics_of_news():
    """As scikit-learn's TfidfVectorizer((1, 2), sublinear_tf) and LogisticRegression(C=10): 87.6 and 85.75."""
    settings = {
        "name": "ag_news", "path": str(DATA / "ag_news" / "{split}.jsonl"),
        "pattern": "[ Category: [MASK] ] {title} {description}", "verbalizer": dict(enumerate("abcd")),
    }  # fmt: skip
    _, linear = baselines.baselines(from_settings(settings), Options(split="test"))
    assert linear.count == 800
    assert 85.3 < linear.numbers["accuracy"] < 86.3
