"""Configs on the command line: --config=FILE[:VARIANT], --config.KEY=VALUE, --print-config.

The words are read here instead of by ml_collections' flags, which end in tracebacks for whatever a user mistypes.
"""

import ast
import dataclasses
import difflib
import importlib.util
import inspect
import pathlib
import re
import sys
import traceback
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from glm_jax.cli.common import Parser

_TRUE, _FALSE = ("true", "t", "1"), ("false", "f", "0")


class ConfigParser(Parser):
    """The arguments of a verb that takes a config.

    `defaults` names the function of glm_jax.config with all keys and their defaults, or several of them where configs
    of several kinds are taken; `file` is the config file taken where the command line names none. Options in `required`
    may be missing only with --print-config. Where the option `without_config` is given, no config is read.
    """

    def __init__(
        self, prog: str, description: str, examples: Sequence[str], *, defaults: str | tuple[str, ...] = "pretrain",
        file: str | None = None, required: Sequence[str] = (), without_config: str | None = None,
    ):  # fmt: skip
        super().__init__(prog, description, (*examples, f"{prog} --print-config   # every key, with its default"))
        self._kinds = (defaults,) if isinstance(defaults, str) else defaults
        self._base, self._file, self._needed, self._without = self._kinds[0], file, required, without_config
        note = f"default: {file}" if file else "required"
        self.add_argument(
            "--config", metavar="FILE", help=f"a file of configs/, or FILE:VARIANT where it has several; {note}"
        )
        self.add_argument("--config.KEY", metavar="VALUE", help="replaces a key, as in --config.model.num_layers=6")
        self.add_argument(
            "--print-config", action="store_true", help="print every key with its value, and end; nothing is run"
        )

    def parse(self, arguments: Sequence[str]) -> tuple[Namespace, Any]:
        """The options, and the config with all replacements made, locked. Ends the process as `Parser` does."""
        try:
            file, replaced, rest = split_words(arguments)
            options = self.parse_args(rest)
            file = file or self._file
            if options.print_config:
                config = self._config(file, replaced)
                print("\n".join(config_lines(config, config.get("kind", self._base))))
                sys.exit(0)
            needs_config = self._without is None or not getattr(options, self._without)
            if file is None and needs_config:
                self.error("--config=FILE is missing: name a file of configs/")
            for name in self._needed:
                if getattr(options, name) is None:
                    self.error(f"--{name} is missing; see {self.prog} --help")
            if not needs_config:
                return options, None
            config = self._config(file, replaced)
            if (kind := config.get("kind", self._base)) not in self._kinds:
                self.error(f"{file} is a config of another kind; use it with python -m glm_jax {kind}")
            return options, config
        except ConfigError as error:
            self.error(str(error))

    def _config(self, file, replaced):
        if file is not None:
            return read_config(file, replaced)
        from glm_jax import config

        return replace_keys(getattr(config, self._base)(), replaced)


class ConfigError(ValueError):
    """A config file or a key of it on the command line that cannot be used."""


def split_words(words: Sequence[str]) -> tuple[str | None, dict[str, str | None], list[str]]:
    """The config file, the texts of replaced keys, and all other words of a command line.

    `--config.KEY` without a value has None: it switches a bool on. `--noconfig.KEY` switches it off.
    """
    file, replaced, rest = None, {}, []
    waiting = iter(range(len(words)))
    for i in waiting:
        word, equals, value = words[i].partition("=")
        if word.startswith("--noconfig."):
            replaced[word.removeprefix("--noconfig.")] = "false"
            continue
        if word != "--config" and not word.startswith("--config."):
            rest.append(words[i])
            continue
        if not equals:
            follows = i + 1 < len(words) and not words[i + 1].startswith("--")
            value = words[next(waiting)] if follows else None
        if word == "--config":
            if not value:
                raise ConfigError("--config names no file: name one of configs/")
            file = value
        else:
            replaced[word.removeprefix("--config.")] = value
    return file, replaced, rest


def read_config(file: str, replaced: Mapping[str, str | None] | None = None) -> Any:
    """The ConfigDict of "FILE" or "FILE:VARIANT", locked, with the keys of `replaced` set to what their texts say.

    Raises ConfigError in one line for a file that does not exist or fails, and as `replace_keys` does.
    """
    path, _, variant = file.partition(":")
    if not pathlib.Path(path).is_file():
        raise ConfigError(f"{path} is no config file{_nearest_files(path)}")
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None:
        raise ConfigError(f"{path} is no Python file: a config file ends in .py and defines get_config()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError(f"{path} defines no get_config()")
        if variant and not inspect.signature(module.get_config).parameters:
            raise ConfigError(f"{path} has no variants: leave out :{variant}")
        config = module.get_config(*([variant] if variant else []))
    except ConfigError:
        raise
    except Exception as error:  # whatever the file does
        raise ConfigError(f"{file}{_line_of(error, path)}: {type(error).__name__}: {_first_line(error)}") from error
    if not hasattr(config, "lock"):
        raise ConfigError(f"{path}: get_config() returns {type(config).__name__}, not an ml_collections.ConfigDict")
    return replace_keys(config.lock(), replaced or {})


def replace_keys(config: Any, replaced: Mapping[str, str | None]) -> Any:
    """Sets dotted keys of a ConfigDict to what texts say; their types stay. Returns `config`.

    A text is read by the type of the key: numbers as Python writes them, true or false, tuples as Python literals. None
    empties a key. A key without value and type takes a Python literal, or else the text.

    Raises ConfigError for an unknown key, with the nearest ones, and for a text of another type.
    """
    from glm_jax.config import find_key

    for key, text in replaced.items():
        try:
            section, name = find_key(config, key)
        except LookupError as error:
            raise ConfigError(str(error)) from None
        try:
            section[name] = _value(text, section.get_type(name))
        except (ValueError, SyntaxError, TypeError):
            kind = section.get_type(name).__name__
            like = f", such as {section[name]!r}" if section[name] not in (None, "", ()) else ""
            given = f"={text}: {text!r}" if text is not None else ": no value"
            raise ConfigError(f"--config.{key}{given} is no {kind}{like}") from None
    return config


def _value(text: str | None, kind: type) -> Any:
    if text is None:
        if kind is bool:
            return True
        raise ValueError
    if text == "None":
        return None
    if kind is bool:
        if text.lower() not in _TRUE + _FALSE:
            raise ValueError
        return text.lower() in _TRUE
    if kind in (int, float, str):
        return kind(text)
    if kind in (tuple, list):
        value = ast.literal_eval(text)
        return kind(value if isinstance(value, tuple | list) else (value,))
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _nearest_files(path: str) -> str:
    files = [str(file) for file in sorted(pathlib.Path("configs").rglob("*.py"))]
    alike = difflib.get_close_matches(path, files, n=3, cutoff=0.7)
    return f"; nearest: {', '.join(alike)}" if alike else ": name one of configs/"


def _line_of(error: Exception, path: str) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(path)]
    number = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f", line {number}" if number else ""


def _first_line(error: BaseException) -> str:
    while error.args and isinstance(error.args[0], KeyError):  # a ConfigDict's AttributeError
        error = error.args[0]
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    return text.splitlines()[0] if text else "without a message"


def config_lines(config: Any, defaults: str) -> list[str]:
    """`KEY = VALUE  # comment` of every key; the comments are those of glm_jax/config.py and of the dataclasses.

    The type is added where a value is None.
    """
    from glm_jax.config import leaves

    comments = _comments(defaults)
    lines = []
    for key, value, kind in leaves(config):
        kind = kind.__name__ if value is None and kind not in (type(None), object) else ""
        note = ": ".join(filter(None, (kind, comments.get(key.removeprefix("base."), ""))))
        lines.append(f"{key} = {value!r}" + (f"  # {note}" if note else ""))
    return lines


def _comments(defaults: str) -> dict[str, str]:
    from glm_jax import config
    from glm_jax.corruption.config import CorruptionConfig
    from glm_jax.model.config import GLMConfig

    comments = {}
    for section, kind in (("model", GLMConfig), ("corruption", CorruptionConfig)):
        names = {field.name for field in dataclasses.fields(kind)}
        for name, comment in re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(kind), re.M):
            if name in names:
                comments[f"{section}.{name}"] = comment
    kinds = ("pretrain", "finetune", "sweep")  # each has the keys of those before it
    for name in kinds[: kinds.index(defaults) + 1]:
        comments |= re.findall(r"^ +config\.([\w.]+) = .*?  # (.*)$", inspect.getsource(getattr(config, name)), re.M)
    return comments
