"""Templates as promptsource writes them (Bach et al. 2022, arXiv 2202.01279): Jinja texts "prompt ||| target" with
answer choices, 2,085 of them for 180 data sets in its release 0.2.3.

Its YAML files are read where the package is installed (it is never imported, so any Python will do:
`pip install --no-deps --ignore-requires-python promptsource`), or in the folder GLM_JAX_PROMPTSOURCE.
"""

import collections
import dataclasses
import functools
import hashlib
import importlib.util
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.templates import MASK, Mark, Template, Truncatable, TruncateLast
from glm_jax.tokenizers.base import Tokenizer

FOLDER_VARIABLE = "GLM_JAX_PROMPTSOURCE"
_BAR, _BAR_IN_DATA = "|||", "\ue000\ue001\ue000"  # a field that holds the separator must not split the template


@dataclasses.dataclass(frozen=True)
class PromptsourceTemplate:
    """One template. `choices` is the Jinja text of its answer choices, None where the target is free text."""

    dataset: str
    name: str
    jinja: str
    choices: str | None

    def render(self, fields: Mapping[str, Any]) -> tuple[str, str]:
        """The prompt and the target. A template's random choices depend on the example alone.

        Raises:
          TaskError: a field that the example lacks, or not exactly one target.
        """
        known = self.answer_choices(fields)
        parts = self._fill(self.jinja, fields, answer_choices=known).split(_BAR)
        if len(parts) != 2 or not parts[1].strip():
            raise TaskError(f"{self}: does not apply to this example: it gives {len(parts) - 1} targets")
        prompt, target = (part.strip().replace(_BAR_IN_DATA, _BAR) for part in parts)
        return prompt, target

    def answer_choices(self, fields: Mapping[str, Any]) -> list[str] | None:
        """What the target is chosen from."""
        if self.choices is None:
            return None
        return [part.strip() for part in self._fill(self.choices, fields).split(_BAR)]

    def _fill(self, text, fields, **more):
        import jinja2

        compiled = _environment().from_string(text)
        draw = functools.partial(_draw, repr(sorted(fields.items(), key=str)))
        try:
            return compiled.render(**_escaped(fields), **more, _draw=draw)
        except jinja2.UndefinedError as error:
            raise TaskError(f"{self}: {error}; the fields are {', '.join(map(str, fields))}") from error
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, ArithmeticError) as error:
            raise TaskError(f"{self}: cannot be filled: {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        return f"promptsource:{self.dataset}/{self.name}"


def find(name: str, folder: str | os.PathLike | None = None) -> PromptsourceTemplate:
    """The template that `promptsource:DATASET/TEMPLATE` names, such as promptsource:super_glue/boolq/GPT-3 Style.

    Raises TaskError, with what there is, for a data set or template that there is not.
    """
    root = templates_folder(folder)
    path = name.removeprefix("promptsource:")
    parts = path.split("/")
    for count in range(len(parts) - 1, 0, -1):
        if (root.joinpath(*parts[:count]) / "templates.yaml").is_file():
            dataset, template = "/".join(parts[:count]), "/".join(parts[count:])
            templates = _load(str(root), dataset)
            if template not in templates:
                raise TaskError(f"{dataset} has no template {template!r}; it has {', '.join(map(repr, templates))}")
            return templates[template]
    raise TaskError(f"promptsource has no data set for {path!r} in {root}: write promptsource:DATASET/TEMPLATE")


def every(folder: str | os.PathLike | None = None) -> Iterator[PromptsourceTemplate]:
    """All templates, by data set. Two of a data set that have the same name both appear."""
    root = templates_folder(folder)
    for path in sorted(root.glob("**/templates.yaml")):
        dataset = path.parent.relative_to(root).as_posix()
        yield from _read(path, dataset)


def templates_folder(folder: str | os.PathLike | None = None) -> pathlib.Path:
    """The folder of the YAML files: `folder`, the variable GLM_JAX_PROMPTSOURCE, or the installed package."""
    given = folder or os.environ.get(FOLDER_VARIABLE)
    spec = None if given else importlib.util.find_spec("promptsource")
    if given is None and spec is None:
        raise TaskError(
            "promptsource is not installed: pip install --no-deps --ignore-requires-python promptsource, or name a "
            f"folder of its templates with {FOLDER_VARIABLE}"
        )
    root = pathlib.Path(given) if given else pathlib.Path(spec.submodule_search_locations[0]) / "templates"
    if not root.is_dir():
        raise TaskError(f"there are no templates of promptsource in {root}")
    return root


def cloze_template(name: str, folder: str | os.PathLike | None = None) -> Template:
    """A template with answer choices as a `Template`: the rendered text, then the blank; candidates are the choices.

    The longest field of a long example is shortened first.

    Raises:
      TaskError: a template without choices. Its target is text to be generated, see `layout`.
    """
    template = find(name, folder)
    if template.choices is None:
        raise TaskError(f"{template} has no answer choices: its target is generated, not chosen")

    def target(fields):
        return " " + template.render(fields)[1]

    return Template(
        lambda fields: prompt_parts(template.render(fields)[0], fields),
        candidates=lambda fields: [" " + choice for choice in template.answer_choices(fields)],
        target=target,
    )


def prompt_parts(text: str, fields: Mapping[str, Any]) -> list[str | Mark]:
    """A rendered text, whose longest field is shortened first, followed by the blank."""
    values = sorted((str(v).strip() for v in fields.values() if isinstance(v, str)), key=len, reverse=True)
    longest = next((value for value in values if value and value in text), None)
    if longest is None:
        return [TruncateLast(text), MASK]
    before, _, after = text.partition(longest)
    space = before[len(before.rstrip(" ")) :]
    return [TruncateLast(before.rstrip(" ")), Truncatable(space + longest), TruncateLast(after), MASK]


def layout(template: PromptsourceTemplate):
    """For `Seq2SeqTask`: [CLS] prompt [MASK] [EOS]; a long prompt loses its beginning."""

    def context(tokenizer: Tokenizer, fields: Mapping[str, Any], length: int) -> list[int]:
        special = tokenizer.special
        ids = tokenizer.encode(template.render(fields)[0])
        return [special.cls, *ids[max(0, len(ids) - (length - 3)) :], special.mask, special.eos]

    return context


@functools.lru_cache(maxsize=64)
def _load(root: str, dataset: str) -> dict[str, PromptsourceTemplate]:
    path = pathlib.Path(root).joinpath(*dataset.split("/")) / "templates.yaml"
    return {template.name: template for template in _read(path, dataset)}


def _read(path, dataset):
    import yaml

    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _loader())
        rows = [content["templates"][key] for key in content["templates"]]
        return [
            PromptsourceTemplate(dataset, row["name"], row["jinja"], row.get("answer_choices") or None) for row in rows
        ]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise TaskError(f"{path} is not a promptsource file: {error}") from error


@functools.cache
def _loader():
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain values, and promptsource's two tags as mappings."""

    for tag in ("!Template", "!TemplateMetadata"):
        Loader.add_constructor(tag, lambda loader, node: loader.construct_mapping(node, deep=True))
    return Loader


@functools.cache
def _environment():
    import jinja2
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined)
    environment.globals["zip"] = zip

    @jinja2.pass_context
    def choice(context, options: Sequence[Any]) -> Any:
        return context["_draw"](list(options))

    environment.filters["choice"] = environment.filters["random"] = choice
    environment.filters["most_frequent"] = _most_frequent
    return environment


def _most_frequent(items):
    """All items that occur as often as any."""
    counts = collections.Counter(items)
    return [item for item, count in counts.items() if count == max(counts.values())]


def _draw(example: str, options: list) -> Any:
    if not options:
        raise ValueError("there is nothing to choose from")
    return options[int.from_bytes(hashlib.blake2b(example.encode(), digest_size=8).digest(), "big") % len(options)]


def _escaped(value):
    if isinstance(value, str):
        return value.replace(_BAR, _BAR_IN_DATA)
    if isinstance(value, Mapping):
        return {key: _escaped(item) for key, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, list | tuple) else value
