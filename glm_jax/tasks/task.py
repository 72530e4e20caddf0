"""A task: where examples come from, a prompt, and a score. docs/tasks.md shows how to add one."""

import dataclasses
import importlib.util
import os
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from glm_jax.tasks import metrics, patterns_more, patterns_superglue, seq2seq, superglue
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example, Source, hub, jsonl, table, tfds
from glm_jax.tasks.infilling import InfillingTask
from glm_jax.tasks.prompts import MASK, PromptEncoder, Template, Truncatable, TruncateLast, label_name
from glm_jax.tasks.seq2seq import Seq2SeqTask
from glm_jax.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model says of one example: a score for each candidate, and which is best."""

    example: Example
    texts: tuple[str, ...]  # the candidates
    scores: tuple[float, ...]
    label: int | None  # the right candidate's number; None where it is not known
    greedy: tuple[bool, ...]  # whether greedy decoding writes the candidate

    @property
    def choice(self) -> int:
        """The number of the best candidate."""
        return int(np.argmax(self.scores))


@dataclasses.dataclass(frozen=True)
class Task:
    """A classification or multiple choice task as filling a blank.

    Attributes:
      name: for tables and file names.
      source: a split's name -> examples.
      prompt: what is written around an example, and what may fill the blank.
      score: predictions -> named numbers; the first is the task's main one.
      max_length: tokens of Part A and the longest candidate.
      length_penalty: of `scoring.candidate_scores`.
    """

    name: str
    source: Source
    prompt: Template
    score: Callable[[Sequence[Prediction]], dict[str, float]] = metrics.accuracy
    max_length: int = 256
    length_penalty: float = 0.0


AnyTask = Task | Seq2SeqTask | InfillingTask


def encoder_of(task: Task, tokenizer: Tokenizer, positions: int, multi_token: bool | None = None) -> PromptEncoder:
    """What encodes a task's examples for a model of `positions`, the same for training and evaluation."""
    return PromptEncoder(tokenizer, min(task.max_length, positions), multi_token=multi_token)


def named_example(example: Example, call: Callable, *arguments: Any) -> Any:
    """`call(*arguments)`; a TaskError says which example it is about."""
    try:
        return call(*arguments)
    except TaskError as error:
        raise TaskError(f"example {example.id}: {error}") from error
    except KeyError as error:
        there = ", ".join(map(str, example.fields))
        raise TaskError(f"example {example.id}: the prompt asks for {error}, but the fields are {there}") from error


# The original's max_length of each SuperGLUE task (config_tasks/task_*.sh) and the pattern of the paper's Table 8.
_MAX_LENGTH = {"multirc": 512, "record": 512, "wsc": 128}
_SCORES = {"cb": metrics.cb, "multirc": metrics.multirc, "record": metrics.record, "wsc": metrics.wsc}


def superglue_task(name: str, folder: str, pattern: int = 0) -> Task:
    """A task of SuperGLUE on a folder of its files, with pattern `pattern` of the original."""
    prompts = patterns_superglue.PROMPTS.get(name)
    if prompts is None:
        raise TaskError(f"{name!r} is no SuperGLUE task; they are {', '.join(patterns_superglue.PROMPTS)}")
    return Task(
        name,
        superglue.source(name, folder),
        pattern_of(name, prompts, pattern),
        _SCORES.get(name, metrics.accuracy),
        _MAX_LENGTH.get(name, 256),
    )


def pattern_of(name: str, prompts: Sequence[Template], pattern: int) -> Template:
    """Pattern number `pattern`. Raises TaskError for one that there is not."""
    if not 0 <= pattern < len(prompts):
        raise TaskError(f"{name} has no pattern {pattern}; it has 0 to {len(prompts) - 1}")
    return prompts[pattern]


def named_prompt(name: str, pattern: int = 0) -> Template:
    """A prompt of the original, such as agnews with pattern 3; or promptsource:DATASET/TEMPLATE."""
    if name.startswith("promptsource:"):
        from glm_jax.tasks import promptsource

        return promptsource.prompt(name)
    prompts = patterns_superglue.PROMPTS | patterns_more.PROMPTS
    if name not in prompts:
        raise TaskError(
            f"no prompt is named {name!r}; there are {', '.join(prompts)}, and promptsource:DATASET/TEMPLATE"
        )
    return pattern_of(name, prompts[name], pattern)


def written_pattern(text: str) -> Callable[[Mapping[str, Any]], list]:
    """A pattern written as text: "{title}: {body} Topic: [MASK]". A {field!q} is shortened after all others.

    Spaces before a field or the blank belong to what follows them, as everywhere in the original's patterns.
    Raises TaskError for a pattern without exactly one [MASK]; applied to an example without such a field, one that
    names the fields there are.
    """
    if text.count("[MASK]") != 1:
        raise TaskError(f"a pattern needs one [MASK], but {text!r} has {text.count('[MASK]')}")
    try:
        pieces = [("", None, "")]
        for literal, field, _, conversion in string.Formatter().parse(text):
            if pieces[-1][1] is None:  # an escaped brace ends a literal, but no text
                literal = pieces.pop()[0] + literal
            pieces.append((literal, field, conversion))
    except ValueError as error:
        raise TaskError(f"the pattern {text!r} cannot be read: {error}; write {{{{ and }}}} for braces") from error

    def pattern(fields):
        parts, space = [], ""
        for literal, field, conversion in pieces:
            before, blank, after = (space + literal).partition("[MASK]")
            if blank:
                parts += [before.rstrip(" "), MASK]
                before = after
            body = before.rstrip(" ")
            parts.append(body)
            space = before[len(body) :]
            if field is not None:
                if field not in fields:
                    raise TaskError(f"the pattern asks for {field!r}, but the fields are {', '.join(map(str, fields))}")
                parts.append((TruncateLast if conversion == "q" else Truncatable)(space + str(fields[field])))
                space = ""
        return [part for part in parts if part]

    return pattern


def _infilling(ratio, folder):
    try:
        value = float(ratio)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise TaskError(f"write blank:RATIO with a share of the words between 0 and 1, not {ratio!r}")
    return InfillingTask(f"blank_{ratio}", seq2seq.infilling_source(folder), value)


_READERS = {".jsonl": jsonl, ".csv": table, ".tsv": table}


def from_settings(settings: Mapping[str, Any]) -> Task:
    """A task from plain values, as a config holds it.

    Keys: `name`; one of `path` (.jsonl, .csv or .tsv, with {split} in it), `tfds` or `hub`; `pattern` (text, see
    `written_pattern`) with `verbalizer` ({label: text}) or `candidates` (a field that lists texts), or `prompt` (a
    name, see `named_prompt`) with `pattern_id`; optionally `label`, `fields`, `columns`, `score` (a function's name in
    glm_jax.tasks.metrics), `max_length`, `length_penalty`, `data_dir`.
    Raises TaskError for an unknown key, and for keys that do not make a task.
    """
    settings = dict(settings)
    known = {
        "name", "path", "tfds", "hub", "pattern", "verbalizer", "candidates", "prompt", "pattern_id", "label", "fields",
        "columns", "score", "max_length", "length_penalty", "data_dir",
    }  # fmt: skip
    if unknown := set(settings) - known:
        raise TaskError(f"unknown key {sorted(unknown)[0]!r} in a task; the keys are {', '.join(sorted(known))}")
    name = settings.get("name")
    if not name:
        raise TaskError("a task needs a name")
    if ("pattern" in settings) == ("prompt" in settings):
        raise TaskError(f"task {name}: give either a pattern or the name of a prompt")
    if "prompt" in settings:
        prompt = named_prompt(settings["prompt"], settings.get("pattern_id", 0))
    else:
        verbalizer = settings.get("verbalizer")
        if verbalizer is not None:
            verbalizer = {label_name(label): word for label, word in dict(verbalizer).items()}
        field = settings.get("candidates")
        candidates = None if field is None else lambda e: [" " + text for text in e[field]]
        prompt = Template(written_pattern(settings["pattern"]), verbalizer, candidates)
    score = settings.get("score", "accuracy")
    if score not in metrics.SCORES:
        raise TaskError(f"task {name}: there is no score {score!r}; there are {', '.join(metrics.SCORES)}")
    options = {key: settings[key] for key in ("max_length", "length_penalty") if key in settings}
    return Task(name, _source(name, settings), prompt, metrics.SCORES[score], **options)


def _source(name, settings):
    given = [key for key in ("path", "tfds", "hub") if key in settings]
    if len(given) != 1:
        raise TaskError(f"task {name}: give one of path, tfds and hub, not {' and '.join(given) or 'none'}")
    options = {key: settings[key] for key in ("label", "fields") if key in settings}
    if given == ["tfds"]:
        return tfds(settings["tfds"], settings.get("data_dir", "data"), **options)
    if given == ["hub"]:
        return hub(*settings["hub"].split(":", 1), **options)
    path = settings["path"]
    suffix = os.path.splitext(path.removesuffix(".gz").removesuffix(".xz"))[1]
    if suffix not in _READERS:
        raise TaskError(f"task {name}: {path} is none of {', '.join(_READERS)}")
    if "columns" in settings:
        if suffix == ".jsonl":
            raise TaskError(f"task {name}: columns are of tables, and {path} names its fields itself; leave them out")
        options["columns"] = settings["columns"]
    return _READERS[suffix](path, **options)


def find(name: str, data_dir: str = "data") -> AnyTask:
    """The task that a command names.

    name: a SuperGLUE task on data_dir, with ":PATTERN" behind it for another pattern than 0 (boolq:4);
    gigaword, cnn_dm, cnn_dm_original, xsum or squad_generation on data_dir or its folder of that name; pairs:FOLDER for
    {split}.source and .target there; kjv_to_web, which needs no files; blank:RATIO for infilling of data_dir; or a
    Python file that defines `task` (a task, or a dict for `from_settings`).
    """
    if name.endswith(".py"):
        if not os.path.isfile(name):
            raise TaskError(f"there is no file {name}")
        spec = importlib.util.spec_from_file_location("task_file", name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, "task"):
            raise TaskError(f"{name} defines no `task`")
        return from_settings(module.task) if isinstance(module.task, Mapping) else module.task
    base, _, pattern = name.partition(":")
    if base in seq2seq.TASKS:
        inside = os.path.join(data_dir, base)
        return seq2seq.TASKS[base](inside if os.path.isdir(inside) else data_dir)
    if base == "pairs":
        folder = os.path.normpath(pattern or data_dir)
        return seq2seq.pairs(os.path.basename(folder), folder)
    if base == "kjv_to_web":
        return seq2seq.modernisation()
    if base == "blank":
        return _infilling(pattern, data_dir)
    if pattern and not pattern.isdigit():
        raise TaskError(f"{name!r}: write TASK:PATTERN with the pattern's number")
    return superglue_task(base, data_dir, int(pattern or 0))
