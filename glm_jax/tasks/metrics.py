"""Metrics: accuracy, F1, exact match, and those of SuperGLUE's tasks; ROUGE and BLEU.

A metric is a function from predictions to named numbers, in per cent, the main one first. Definitions: SuperGLUE (Wang
et al. 2019, section 3) and the original's tasks/superglue/evaluate.py and tasks/seq2seq/evaluate.py.
"""

import collections
import re
import string
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from glm_jax.tasks.errors import TaskError


class NoLabels(TaskError):
    """A split without labels, for which a metric has no value."""

    def __init__(self):
        super().__init__("no example has a label: there is nothing to score")


_MAX_REPEATED, _SHORT_SENTENCE = 0.7, 4  # of `fix_summary`


def accuracy(predictions: Sequence[Any]) -> dict[str, float]:
    """Share of examples whose highest-scoring candidate is the right one."""
    return {"accuracy": 100 * _mean(p.choice == p.label for p in _labelled(predictions))}


def f1(predictions: Sequence[Any]) -> dict[str, float]:
    """F1 of the second candidate ("positive"), and accuracy."""
    known = _labelled(predictions)
    return {"f1": 100 * binary_f1([p.choice for p in known], [p.label for p in known]), **accuracy(predictions)}


def cb(predictions: Sequence[Any]) -> dict[str, float]:
    """CommitmentBank: accuracy, and F1 averaged over the three labels."""
    known = _labelled(predictions)
    return {**accuracy(predictions), "f1_macro": 100 * macro_f1([p.choice for p in known], [p.label for p in known])}


def multirc(predictions: Sequence[Any]) -> dict[str, float]:
    """MultiRC: F1 over all answers, and the share of questions whose answers are all predicted correctly."""
    known = _labelled(predictions)
    choices, labels = [p.choice for p in known], [p.label for p in known]
    groups = [p.example.fields["question_id"] for p in known]
    exact = 100 * grouped_exact_match(choices, labels, groups)
    return {"f1a": 100 * binary_f1(choices, labels), "em": exact, **accuracy(predictions)}


def record(predictions: Sequence[Any]) -> dict[str, float]:
    """ReCoRD: F1 of words, and exact match, each the best over the query's right answers."""
    if not any(p.example.fields["answers"] for p in predictions):
        raise NoLabels
    predicted = [(p.example.fields["candidates"][p.choice], p.example.fields["answers"]) for p in predictions]
    return record_scores(predicted)


def wsc(predictions: Sequence[Any]) -> dict[str, float]:
    """WSC: the prediction is true if the span scores higher than all other candidates.

    Without other candidates: if greedy decoding writes the span (the original's evaluation of its generative variant).
    """
    known = [p for p in predictions if p.example.fields.get("label") is not None]
    if not known:
        raise NoLabels
    predicted = [p.choice == 0 if len(p.texts) > 1 else p.greedy[0] for p in known]
    return {"accuracy": 100 * _mean(c == p.example.fields["label"] for c, p in zip(predicted, known, strict=True))}


METRICS = {"accuracy": accuracy, "f1": f1, "cb": cb, "multirc": multirc, "record": record, "wsc": wsc}


def binary_f1(predicted: Sequence[int], labels: Sequence[int], positive: int = 1) -> float:
    """F1 of one class, a fraction; 0 if the class is never predicted or never right."""
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    right = np.sum((predicted == positive) & (labels == positive))
    total = np.sum(predicted == positive) + np.sum(labels == positive)
    return float(2 * right / total) if total else 0.0


def macro_f1(predicted: Sequence[int], labels: Sequence[int]) -> float:
    """F1 averaged over the classes that occur, a fraction."""
    return float(np.mean([binary_f1(predicted, labels, c) for c in sorted({*predicted, *labels})]))


def grouped_exact_match(predicted: Sequence[int], labels: Sequence[int], groups: Sequence[Any]) -> float:
    """The share of groups without a wrong prediction, a fraction."""
    right = collections.defaultdict(lambda: True)
    for p, label, group in zip(predicted, labels, groups, strict=True):
        right[group] &= p == label
    return _mean(right.values())


def record_scores(predicted: Sequence[tuple[str, Sequence[str]]]) -> dict[str, float]:
    """F1 and exact match from (predicted text, right answers) of each query. Both are 0 for a query without answers."""
    f1s = [max((word_f1(text, answer) for answer in answers), default=0.0) for text, answers in predicted]
    exact = [max((exact_match(text, answer) for answer in answers), default=0.0) for text, answers in predicted]
    return {"f1": 100 * _mean(f1s), "em": 100 * _mean(exact)}


def normalize_answer(text: str) -> str:
    """SQuAD's normal form: lower case without accents, punctuation, articles and repeated spaces."""
    text = unicodedata.normalize("NFKD", text)
    text = "".join(c for c in text if not unicodedata.combining(c)).lower()
    text = "".join(c for c in text if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(predicted: str, answer: str) -> float:
    """1 if both have the same normal form, else 0."""
    return float(normalize_answer(predicted) == normalize_answer(answer))


def word_f1(predicted: str, answer: str) -> float:
    """F1 of the bags of words of both normal forms."""
    words = [collections.Counter(normalize_answer(text).split()) for text in (predicted, answer)]
    common = sum((words[0] & words[1]).values())
    return 2 * common / (sum(words[0].values()) + sum(words[1].values())) if common else 0.0


def bleu(hypotheses: Sequence[str], references: Sequence[str], tokenize: str = "13a") -> dict[str, float]:
    """Corpus BLEU of sacrebleu, 0 to 100; `tokenize="none"` for texts whose tokens are already separated by spaces."""
    _same_length(hypotheses, references)
    import sacrebleu

    return {"bleu": sacrebleu.corpus_bleu(list(hypotheses), [list(references)], tokenize=tokenize).score}


def rouge(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L over summaries, 0 to 100, with stemming (rouge-score).

    Each sentence is a line; ROUGE-L is that of the whole summary (rougeLsum).
    """
    _same_length(hypotheses, references)
    from rouge_score import rouge_scorer

    names = {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeLsum"}
    scorer = rouge_scorer.RougeScorer(list(names.values()), use_stemmer=True)
    scores = [scorer.score(reference, text) for text, reference in zip(hypotheses, references, strict=True)]
    return {name: 100 * _mean(score[key].fmeasure for score in scores) for name, key in names.items()}


def fix_summary(text: str) -> str:
    """A generated summary, whose sentences are separated by [SEP], as lines without short and repetitive sentences.

    Drops, as the original, sentences of at most 4 words, and those of which more than 70 % of the words came before.
    """
    kept, previous = [], set()
    for sentence in text.strip().split("[SEP]"):
        words = sentence.split()
        if len(words) <= _SHORT_SENTENCE:
            continue
        if sum(word in previous for word in words) / len(words) > _MAX_REPEATED:
            continue
        kept.append(" ".join(words))
        previous |= set(words)
    return "\n".join(kept)


def _labelled(predictions):
    known = [p for p in predictions if p.label is not None]
    if not known:
        raise NoLabels
    return known


def _same_length(hypotheses, references):
    if len(hypotheses) != len(references) or not hypotheses:
        raise TaskError(f"{len(hypotheses)} hypotheses for {len(references)} references: give one for each")


def _mean(values):
    return float(np.mean([float(value) for value in values]))
