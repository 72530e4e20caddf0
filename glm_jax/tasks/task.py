"""A task: where examples come from, a template, and a metric. docs/tasks.md shows how to add one."""

import dataclasses
import importlib.util
import os
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from glm_jax.files import nearest
from glm_jax.tasks import infilling, metrics, patterns_more, patterns_superglue, promptsource, seq2seq, superglue
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example, Source, error_context, hub, jsonl, table, tfds
from glm_jax.tasks.infilling import InfillingTask
from glm_jax.tasks.seq2seq import Seq2SeqTask
from glm_jax.tasks.templates import MASK, Template, TemplateEncoder, Truncatable, TruncateLast, label_name
from glm_jax.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model predicts for one example: a score for each candidate."""

    example: Example
    texts: tuple[str, ...]  # the candidates
    scores: tuple[float, ...]
    label: int | None  # the right candidate's number; None if it is not known
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
      template: the text around an example, and what may fill its blank.
      metric: predictions -> named numbers; the first is the task's main one.
      max_length: maximum number of tokens of Part A and the longest candidate together.
      length_penalty: of `candidate_scores` (evaluation/cloze.py).
    """

    name: str
    source: Source
    template: Template
    metric: Callable[[Sequence[Prediction]], dict[str, float]] = metrics.accuracy
    max_length: int = 256
    length_penalty: float = 0.0

    def encoder(
        self, tokenizer: Tokenizer, num_positions: int, multi_token: bool | None = None, prompt_tokens: int = 0
    ) -> TemplateEncoder:
        """Encodes the task's examples for a model of `num_positions`: the same rows for training and evaluation.

        `prompt_tokens` soft prompt tokens stand where the template marks places for them, else at the beginning.
        """
        length = min(self.max_length, num_positions)
        return TemplateEncoder(tokenizer, length, prompt_tokens, multi_token=multi_token, place_all=True)

    def label_index(self, example: Example) -> int | None:
        """The number of the example's right candidate; None if the example has no label.

        Raises:
          TaskError: a label outside the template.
        """
        if example.label is None and self.template.target is None:
            return None
        with error_context(example):
            return self.template.label_index(example.label, example.fields)


AnyTask = Task | Seq2SeqTask | InfillingTask


# The original's max_length of each SuperGLUE task (config_tasks/task_*.sh) and the pattern of the paper's Table 8.
_MAX_LENGTH = {"multirc": 512, "record": 512, "wsc": 128}
_METRICS = {"cb": metrics.cb, "multirc": metrics.multirc, "record": metrics.record, "wsc": metrics.wsc}


def superglue_task(name: str, folder: str, pattern: int = 0) -> Task:
    """A SuperGLUE task on a folder of its files, with pattern number `pattern` of the original."""
    templates = patterns_superglue.TEMPLATES.get(name)
    if templates is None:
        raise TaskError(f"{name!r} is not a SuperGLUE task; they are {', '.join(patterns_superglue.TEMPLATES)}")
    return Task(
        name,
        superglue.source(name, folder),
        _select_pattern(name, templates, pattern),
        _METRICS.get(name, metrics.accuracy),
        _MAX_LENGTH.get(name, 256),
    )


def _select_pattern(name, templates, pattern):
    if not 0 <= pattern < len(templates):
        raise TaskError(f"{name} has no pattern {pattern}; it has 0 to {len(templates) - 1}")
    return templates[pattern]


def named_template(name: str, pattern: int = 0) -> Template:
    """A template of the original, such as agnews with pattern 3; or promptsource:DATASET/TEMPLATE."""
    if name.startswith("promptsource:"):
        return promptsource.cloze_template(name)
    templates = patterns_superglue.TEMPLATES | patterns_more.TEMPLATES
    if name not in templates:
        raise TaskError(
            f"no prompt is named {name!r}; nearest: {nearest(name, templates)}; or promptsource:DATASET/TEMPLATE"
        )
    return _select_pattern(name, templates[name], pattern)


def written_pattern(text: str) -> Callable[[Mapping[str, Any]], list]:
    """A pattern written as text: "{title}: {body} Topic: [MASK]". A {field!q} is shortened after all others.

    Spaces before a field or the blank belong to what follows them, as in all patterns of the original.

    Raises:
      TaskError: a pattern without exactly one [MASK]. The function raises it for an example that lacks a field.
    """
    if text.count("[MASK]") != 1:
        raise TaskError(f"a pattern needs one [MASK], but {text!r} has {text.count('[MASK]')}")
    try:
        parsed = [("", None, "")]
        for literal, field, _, conversion in string.Formatter().parse(text):
            if parsed[-1][1] is None:  # an escaped brace ends a literal, but not the text
                literal = parsed.pop()[0] + literal
            parsed.append((literal, field, conversion))
    except ValueError as error:
        raise TaskError(f"the pattern {text!r} cannot be read: {error}; write {{{{ and }}}} for braces") from error

    def pattern(fields):
        parts, space = [], ""
        for literal, field, conversion in parsed:
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


_KEYS = (
    "name", "task", "source", "path", "tfds", "hub", "pattern", "verbalizer", "candidates", "prompt", "pattern_id",
    "label", "fields", "columns", "metric", "max_length", "length_penalty", "data_dir",
)  # fmt: skip
_OLD_KEYS = {"score": "metric"}  # keys of earlier versions, in task files and saved configs
_READERS = {".jsonl": jsonl, ".csv": table, ".tsv": table}


def from_settings(settings: Mapping[str, Any]) -> Task:
    """A task from plain values, as a config holds it.

    Keys: `name`; one of `path` (.jsonl, .csv or .tsv, with {split} in it), `tfds`, `hub`, `source` (a function of the
    split's name, in Python files), or `task` (another task, as `find` takes it, which has name, examples and metric);
    `pattern` (text, see
    `written_pattern`) with `verbalizer` ({label: text}) or `candidates` (a field that lists texts), or `prompt` (a
    name, see `named_template`) with `pattern_id`; optionally `label`, `fields`, `columns`, `metric` (a function's name
    in glm_jax.tasks.metrics), `max_length`, `length_penalty`, `data_dir`.

    Raises:
      TaskError: an unknown key, or keys that do not make a task.
    """
    if twice := [f"{old} and {new}" for old, new in _OLD_KEYS.items() if {old, new} <= set(settings)]:
        raise TaskError(f"the keys {twice[0]} of a task mean the same: leave out the first")
    settings = {_OLD_KEYS.get(key, key): value for key, value in settings.items()}
    if unknown := sorted(set(settings) - set(_KEYS)):
        raise TaskError(f"unknown key {unknown[0]!r} in a task; nearest: {nearest(unknown[0], _KEYS)}")
    other = _other_task(settings)
    name = settings.get("name", other and other.name)
    if not name:
        raise TaskError("a task needs a name")
    if ("pattern" in settings) == ("prompt" in settings):
        raise TaskError(f"task {name}: give either a pattern or the name of a prompt")
    if "prompt" in settings:
        template = named_template(settings["prompt"], settings.get("pattern_id", 0))
    else:
        verbalizer = settings.get("verbalizer")
        if verbalizer is not None:
            verbalizer = {label_name(label): word for label, word in dict(verbalizer).items()}
        field = settings.get("candidates")
        candidates = None if field is None else lambda e: [" " + text for text in e[field]]
        template = Template(written_pattern(settings["pattern"]), verbalizer, candidates)
    metric = settings.get("metric", "accuracy")
    if metric not in metrics.METRICS:
        raise TaskError(f"task {name}: unknown metric {metric!r}; known: {', '.join(metrics.METRICS)}")
    options = {key: settings[key] for key in ("max_length", "length_penalty") if key in settings}
    source = _source(name, settings)
    if other is not None:
        metric = {"metric": metrics.METRICS[metric]} if "metric" in settings else {}
        return dataclasses.replace(other, name=name, template=template, **metric, **options)
    return Task(name, source, template, metrics.METRICS[metric], **options)


def _other_task(settings):
    """The task whose examples are taken; None where the settings bring their own."""
    if "task" not in settings:
        return None
    other = find(settings["task"], settings.get("data_dir", "data"))
    if not isinstance(other, Task):
        raise TaskError(f"task {settings['task']} has no candidates, which a pattern could be written for")
    return other


def _source(name, settings):
    given = [key for key in ("path", "tfds", "hub", "source", "task") if key in settings]
    if len(given) != 1:
        raise TaskError(f"task {name}: give one of path, tfds, hub and task, not {' and '.join(given) or 'none'}")
    if given == ["source"]:
        return settings["source"]
    if given == ["task"]:
        return None
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


def _task_of_file(name):
    if not os.path.isfile(name):
        raise TaskError(f"there is no file {name}")
    spec = importlib.util.spec_from_file_location("task_file", name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "task"):
        raise TaskError(f"{name} defines no `task`")
    return module.task


def find(name: str, data_dir: str = "data") -> AnyTask:
    """The task that a command names.

    name: a SuperGLUE task on data_dir, followed by ":PATTERN" for another pattern than 0 (boolq:4);
    gigaword, cnn_dm, cnn_dm_original, xsum or squad_generation on data_dir or its folder of that name; pairs:FOLDER for
    {split}.source and .target there; kjv_to_web, which needs no files; blank:RATIO for infilling of data_dir; or a
    Python file that defines `task` (a task, or a dict for `from_settings`).

    Raises:
      TaskError: a name that is none of these, or a file that does not define a task.
    """
    if name.endswith(".py"):
        task = _task_of_file(name)
        return from_settings(task) if isinstance(task, Mapping) else task
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
        return infilling.infilling_task(pattern, data_dir)
    if pattern and not pattern.isdigit():
        raise TaskError(f"{name!r}: write TASK:PATTERN with the pattern's number")
    return superglue_task(base, data_dir, int(pattern or 0))
