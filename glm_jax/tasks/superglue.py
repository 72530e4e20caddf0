"""SuperGLUE (Wang et al. 2019) and FewGLUE (Schick and Schütze 2021) as their folders hold them, with the original's
corrections (tasks/superglue/dataset.py)."""

import os
import random
from collections.abc import Iterator
from typing import Any

from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example, Source, json_lines

FOLDERS = {
    "rte": "RTE", "cb": "CB", "boolq": "BoolQ", "multirc": "MultiRC", "wic": "WiC", "copa": "COPA", "wsc": "WSC",
    "record": "ReCoRD", "ax-b": "AX-b", "ax-g": "AX-g",
}  # fmt: skip
_FILES = {"train": "train", "validation": "val", "test": "test", "dev32": "dev32", "unlabeled": "unlabeled"}
_MAX_TRAINING_CANDIDATES = 10  # of ReCoRD
_STANDARD = str.maketrans({"“": '"', "”": '"', "’": "'", "‘": "'", "–": "-"})  # noqa: RUF001 (typographic marks)


def source(task: str, folder: str) -> Source:
    """Examples of a SuperGLUE task, with the splits train, validation, test, dev32 and unlabeled.

    Args:
      folder: the task's folder (BoolQ/…), or the folder that contains it.

    Raises:
      TaskError: an unknown task or split, a missing file, or a line that is not an example of the task.
    """
    if task not in FOLDERS:
        raise TaskError(f"{task!r} is not a SuperGLUE task; they are {', '.join(FOLDERS)}")

    def examples(split):
        if split not in _FILES:
            raise TaskError(f"SuperGLUE has no split {split!r}; it has {', '.join(_FILES)}")
        inside = os.path.join(folder, FOLDERS[task])
        base = inside if os.path.isdir(inside) else folder
        name = f"{FOLDERS[task]}.jsonl" if task.startswith("ax-") else f"{_FILES[split]}.jsonl"
        path, shuffler = os.path.join(base, name), random.Random(42)
        for number, record in json_lines(path):
            try:
                yield from _READERS.get(task, _plain)(split, standard_punctuation(record), shuffler)
            except (KeyError, TypeError, IndexError, ValueError) as error:
                if isinstance(error, TaskError):
                    raise
                raise TaskError(
                    f"{path}, line {number}: not an example of {task} ({type(error).__name__}: {error})"
                ) from error

    return examples


def standard_punctuation(value: Any) -> Any:
    """Typographic quotation marks and dashes as ASCII, in every string of a record; lengths do not change."""
    if isinstance(value, str):
        return value.translate(_STANDARD)
    if isinstance(value, dict):
        return {key: standard_punctuation(item) for key, item in value.items()}
    return [standard_punctuation(item) for item in value] if isinstance(value, list) else value


def _plain(split, record, shuffler) -> Iterator[Example]:
    yield Example(f"{split}-{record['idx']}", record, record.get("label"))


def _copa(split, record, shuffler):
    yield from _plain(split, record, shuffler)
    if split in ("train", "unlabeled"):
        mirrored = {**record, "choice1": record["choice2"], "choice2": record["choice1"]}
        label = None if "label" not in record else 1 - record["label"]
        yield Example(f"{split}-{record['idx']}m", {**mirrored, "label": label}, label)


def _multirc(split, record, shuffler):
    """One example for each answer. Those of a question share its `question_id`."""
    for question in record["passage"]["questions"]:
        for answer in question["answers"]:
            fields = {
                "passage": record["passage"]["text"],
                "question": question["question"],
                "answer": answer["text"],
                "question_id": f"{record['idx']}-{question['idx']}",
                "idx": {"paragraph": record["idx"], "question": question["idx"], "answer": answer["idx"]},
            }
            name = f"{split}-p{record['idx']}-q{question['idx']}-a{answer['idx']}"
            yield Example(name, fields, answer.get("label"))


def _record(split, record, shuffler):
    """For training, one example for each answer, with at most nine wrong entities. Else every entity is a candidate."""
    text = record["passage"]["text"]
    entities = sorted({text[entity["start"] : entity["end"] + 1] for entity in record["passage"]["entities"]})
    passage = text.replace("@highlight\n", "- ")
    for query in record["qas"]:
        answers = sorted({answer["text"] for answer in query.get("answers", [])})
        fields = {"passage": passage, "query": query["query"], "answers": answers, "question_id": query["idx"]}
        if "@placeholder" not in query["query"]:
            raise ValueError(f"query {query['idx']} has no @placeholder")
        name = f"{split}-p{record['idx']}-q{query['idx']}"
        if split == "train":
            for number, answer in enumerate(answers):
                wrong = [entity for entity in entities if entity not in answers]
                if len(wrong) > _MAX_TRAINING_CANDIDATES - 1:
                    shuffler.shuffle(wrong)
                    wrong = wrong[: _MAX_TRAINING_CANDIDATES - 1]
                yield Example(f"{name}-{number}", {**fields, "candidates": [answer, *wrong]}, 0)
        else:
            right = next((i for i, entity in enumerate(entities) if entity in answers), None)
            yield Example(name, {**fields, "candidates": entities}, right)


def _wsc(split, record, shuffler):
    """The text with asterisks around the pronoun. Candidates are the span, then `candidates` if the file has them.

    The prediction that the pronoun means the span is that of the first candidate. Only true examples teach it, so
    training leaves out the others, as the original does.
    """
    label = record.get("label")
    if split == "train" and label is False:
        return
    target, words = record["target"], record["text"].split()
    at, pronoun = target["span2_index"], target["span2_text"]
    at = next((at + move for move in (0, -1, 1) if words[at + move : at + move + 1] == [pronoun]), at)
    if words[at] != pronoun and words[at].startswith(pronoun):
        words[at : at + 1] = [pronoun, words[at][len(pronoun) :]]
    words[at] = f"*{words[at]}*"
    others = list(dict.fromkeys(candidate["text"] for candidate in record.get("candidates", [])))
    fields = {
        "text": " ".join(words), "pronoun": pronoun, "span": target["span1_text"], "candidates": others,
        "idx": record["idx"], "label": label,
    }  # fmt: skip
    yield Example(f"{split}-{record['idx']}", fields, 0 if label else None)


_READERS = {"copa": _copa, "multirc": _multirc, "record": _record, "wsc": _wsc}
