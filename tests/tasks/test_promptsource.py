"""promptsource's templates: our own small file, and every template of the package where it is installed."""

import importlib.util
import os

import pytest

from glm_jax.tasks import promptsource, superglue
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import jsonl, read
from glm_jax.tasks.templates import MASK, TemplateEncoder, Truncatable, TruncateLast
from tests.helpers.golden_tasks import DATA, Words, needs_data

needs_promptsource = pytest.mark.skipif(
    not (os.environ.get(promptsource.FOLDER_VARIABLE) or importlib.util.find_spec("promptsource")),
    reason="promptsource is not installed: pip install --no-deps --ignore-requires-python promptsource",
)

YAML = """
dataset: toy
templates:
  1: !Template
    answer_choices: bad ||| good
    jinja: "Review: {{ text }} Was it {{ answer_choices | join(' or ') }}? ||| {{ answer_choices[label] }}"
    metadata: !TemplateMetadata {choices_in_prompt: true}
    name: ask/again
  2: !Template
    answer_choices: null
    jinja: "{{ ['Sum up', 'Shorten'] | choice }}: {{ text }} ||| {{ summary }}"
    name: sum
  3: !Template
    jinja: "{% if label == 1 %}{{ text }} ||| {{ text }}{% endif %}"
    name: some
  4: !Template
    jinja: "{{ ''.__class__.__mro__ }} ||| x"
    name: evil
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "toy" / "sub").mkdir(parents=True)
    (tmp_path / "toy" / "sub" / "templates.yaml").write_text(YAML)
    return tmp_path


def test_a_template_as_a_prompt(folder):
    prompt = promptsource.cloze_template("promptsource:toy/sub/ask/again", folder)
    fields = {"text": "I like it.", "label": 1}
    parts = prompt.pattern(fields)
    assert parts == ["Review:", " I like it.", " Was it bad or good?", MASK]
    assert [type(part) for part in parts[:3]] == [TruncateLast, Truncatable, TruncateLast]
    assert prompt.texts(fields) == [" bad", " good"]
    assert prompt.label_index(None, fields) == 1
    long = {"text": " ".join(f"w{i}" for i in range(60)), "label": 0}
    words = Words()
    (row,) = TemplateEncoder(words, 20).encode(prompt, long)
    assert set(words.encode("Was it bad or good?")) <= set(row.context)


def test_render(folder):
    template = promptsource.find("promptsource:toy/sub/sum", folder)
    fields = {"text": "a ||| b", "summary": "s"}
    prompt, target = template.render(fields)
    assert prompt in ("Sum up: a ||| b", "Shorten: a ||| b")
    assert target == "s"
    assert template.render(fields) == (prompt, target)
    drawn = {template.render({"text": str(i), "summary": "s"})[0].split(":")[0] for i in range(40)}
    assert drawn == {"Sum up", "Shorten"}


def test_errors(folder):
    with pytest.raises(TaskError, match="'summary' is undefined; the fields are text, label"):
        promptsource.find("toy/sub/sum", folder).render({"text": "x", "label": 0})
    with pytest.raises(TaskError, match="toy/sub has no template 'ask'; it has 'ask/again', 'sum'"):
        promptsource.find("promptsource:toy/sub/ask", folder)
    with pytest.raises(TaskError, match="no data set for 'toys/x'"):
        promptsource.find("promptsource:toys/x", folder)
    with pytest.raises(TaskError, match="has no answer choices"):
        promptsource.cloze_template("promptsource:toy/sub/sum", folder)
    with pytest.raises(TaskError, match="does not apply to this example"):
        promptsource.find("toy/sub/some", folder).render({"text": "x", "label": 0})
    with pytest.raises(TaskError, match="cannot be filled: SecurityError"):
        promptsource.find("toy/sub/evil", folder).render({})
    with pytest.raises(TaskError, match="no templates of promptsource"):
        promptsource.templates_folder(folder / "none")
    (folder / "toy" / "sub" / "templates.yaml").write_text("templates: [")
    with pytest.raises(TaskError, match="is not a promptsource file"):
        list(promptsource.every(folder))


@needs_promptsource
def test_every_template_parses():
    environment = promptsource._environment()
    templates = list(promptsource.every())
    assert len(templates) == 2085
    assert len({template.dataset for template in templates}) >= 180
    for template in templates:
        environment.parse(template.jinja)
        environment.parse(template.choices or "")
        assert promptsource.find(str(template)).dataset == template.dataset


@needs_promptsource
@needs_data
@pytest.mark.parametrize("task", ["boolq", "cb", "copa", "rte", "ag_news"])
def test_templates_render_local_data(task):
    if task == "ag_news":
        examples = read(jsonl(str(DATA / "ag_news/{split}.jsonl")), "test", 20)
        rows = [{"text": f"{e.fields['title']} {e.fields['description']}", "label": e.label} for e in examples]
    else:
        examples = read(superglue.source(task, str(DATA / "superglue")), "validation", 20)
        names = {"boolq": [False, True], "cb": ["entailment", "contradiction", "neutral"], "copa": [0, 1]}
        names["rte"] = ["entailment", "not_entailment"]
        rows = [{**e.fields, "label": names[task].index(e.label)} for e in examples]
    dataset = task if task == "ag_news" else f"super_glue/{task}"
    templates = [template for template in promptsource.every() if template.dataset == dataset]
    assert templates
    for template in templates:
        done = 0
        for row in rows:
            try:
                text, target = template.render(row)
            except TaskError as error:
                if "does not apply" in str(error):
                    continue
                raise
            choices = template.answer_choices(row)
            assert text
            assert choices is None or target in choices
            done += 1
        assert done, template
