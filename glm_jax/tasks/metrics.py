"""Scores of predictions: accuracy, F1, exact match, and the groupings of SuperGLUE; ROUGE and BLEU.

A score is a function from predictions to named numbers, in per cent, the main one first. Definitions: SuperGLUE (Wang
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
    """There is nothing to score: a split whose labels are kept secret."""

    def __init__(self):
        super().__init__("no example has a label: there is nothing to score")


_MOST_REPEATED, _SHORT_SENTENCE = 0.7, 4  # of `fix_summary`


def accuracy(predictions: Sequence[Any]) -> dict[str, float]:
    """Share of examples whose best candidate is the right one."""
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
    """MultiRC: F1 over all answers, and the share of questions all of whose answers are judged rightly."""
    known = _labelled(predictions)
    choices, labels = [p.choice for p in known], [p.label for p in known]
    groups = [p.example.fields["question_id"] for p in known]
    exact = 100 * grouped_exact_match(choices, labels, groups)
    return {"f1a": 100 * binary_f1(choices, labels), "em": exact, **accuracy(predictions)}


def record(predictions: Sequence[Any]) -> dict[str, float]:
    """ReCoRD: best F1 of words, and exact match, against any right answer of the query."""
    if not any(p.example.fields["answers"] for p in predictions):
        raise NoLabels
    picked = [(p.example.fields["candidates"][p.choice], p.example.fields["answers"]) for p in predictions]
    return record_scores(picked)


def wsc(predictions: Sequence[Any]) -> dict[str, float]:
    """WSC: the pronoun means the span where the span beats all candidates.

    Without candidates: where greedy decoding writes the span (the original's evaluation of its generative variant).
    """
    known = [p for p in predictions if p.example.fields.get("label") is not None]
    if not known:
        raise NoLabels
    said = [p.choice == 0 if len(p.texts) > 1 else p.greedy[0] for p in known]
    return {"accuracy": 100 * _mean(s == p.example.fields["label"] for s, p in zip(said, known, strict=True))}


METRICS = {"accuracy": accuracy, "f1": f1, "cb": cb, "multirc": multirc, "record": record, "wsc": wsc}


def binary_f1(predicted: Sequence[int], labels: Sequence[int], positive: int = 1) -> float:
    """F1 of one class, a fraction; 0 where it is neither predicted rightly nor at all."""
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    right = np.sum((predicted == positive) & (labels == positive))
    total = np.sum(predicted == positive) + np.sum(labels == positive)
    return float(2 * right / total) if total else 0.0


def macro_f1(predicted: Sequence[int], labels: Sequence[int]) -> float:
    """F1 averaged over the classes that occur, a fraction."""
    return float(np.mean([binary_f1(predicted, labels, c) for c in sorted({*predicted, *labels})]))


def grouped_exact_match(predicted: Sequence[int], labels: Sequence[int], groups: Sequence[Any]) -> float:
    """Share of groups without a wrong prediction."""
    right = collections.defaultdict(lambda: True)
    for p, label, group in zip(predicted, labels, groups, strict=True):
        right[group] &= p == label
    return _mean(right.values())


def record_scores(picked: Sequence[tuple[str, Sequence[str]]]) -> dict[str, float]:
    """From (picked text, right answers) of each query. A query without answers counts nothing right."""
    f1s = [max((word_f1(text, answer) for answer in answers), default=0.0) for text, answers in picked]
    exact = [max((exact_match(text, answer) for answer in answers), default=0.0) for text, answers in picked]
    return {"f1": 100 * _mean(f1s), "em": 100 * _mean(exact)}


def normalize_answer(text: str) -> str:
    """SQuAD's normal form: lower case ASCII without punctuation, articles and superfluous spaces."""
    text = unicodedata.normalize("NFKD", text)
    text = "".join(c for c in text if not unicodedata.combining(c)).lower()
    text = "".join(c for c in text if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(predicted: str, answer: str) -> float:
    """1 where both have the same normal form."""
    return float(normalize_answer(predicted) == normalize_answer(answer))


def word_f1(predicted: str, answer: str) -> float:
    """F1 of the bags of words of both normal forms."""
    words = [collections.Counter(normalize_answer(text).split()) for text in (predicted, answer)]
    common = sum((words[0] & words[1]).values())
    return 2 * common / (sum(words[0].values()) + sum(words[1].values())) if common else 0.0


def bleu(hypotheses: Sequence[str], references: Sequence[str], tokenize: str = "13a") -> dict[str, float]:
    """Corpus BLEU of sacrebleu, 0 to 100; `tokenize="none"` for texts whose tokens are split by spaces already."""
    _same_length(hypotheses, references)
    import sacrebleu

    return {"bleu": sacrebleu.corpus_bleu(list(hypotheses), [list(references)], tokenize=tokenize).score}


def rouge(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L over summaries, 0 to 100, with stemming (rouge-score).

    Sentences stand on lines of their own; ROUGE-L is of the whole summary (rougeLsum).
    """
    _same_length(hypotheses, references)
    from rouge_score import rouge_scorer

    names = {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeLsum"}
    scorer = rouge_scorer.RougeScorer(list(names.values()), use_stemmer=True)
    found = [scorer.score(reference, text) for text, reference in zip(hypotheses, references, strict=True)]
    return {name: 100 * _mean(scores[key].fmeasure for scores in found) for name, key in names.items()}


def fix_summary(text: str) -> str:
    """A generated summary, sentences split by [SEP], as lines without short and repeating sentences.

    The original drops sentences of at most 4 words, and those of which more than 70 % of the words came before.
    """
    kept, seen = [], set()
    for sentence in text.strip().split("[SEP]"):
        words = sentence.split()
        if len(words) <= _SHORT_SENTENCE:
            continue
        if sum(word in seen for word in words) / len(words) > _MOST_REPEATED:
            continue
        kept.append(" ".join(words))
        seen |= set(words)
    return "\n".join(kept)


def _labelled(predictions):
    known = [p for p in predictions if p.label is not None]
    if not known:
        raise NoLabels
    return known


def _same_length(hypotheses, references):
    if len(hypotheses) != len(references) or not hypotheses:
        raise TaskError(f"{len(hypotheses)} hypotheses for {len(references)} references: there is one for each")


def _mean(values):
    return float(np.mean([float(value) for value in values]))
