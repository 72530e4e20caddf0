"""The tokenizer files of the hub's GLM models, in both directions."""

import dataclasses
import json
import pathlib
from typing import Any

from glm_jax import tokenizers
from glm_jax.interop.errors import FormatError
from glm_jax.tokenizers.base import Tokenizer
from glm_jax.tokenizers.byte_bpe import ByteBPETokenizer, gpt2_commands, roberta_commands
from glm_jax.tokenizers.chinese_sentencepiece import MODEL_FILE, ChineseSentencePieceTokenizer, chinese_commands
from glm_jax.tokenizers.released import Command, ReleasedTokenizer
from glm_jax.tokenizers.wordpiece import WordPieceTokenizer, bert_commands

_CONFIG, _ADDED = "tokenizer_config.json", "added_tokens.json"
_OURS = "glm_jax"  # key in tokenizer_config.json under which our exports state the command tokens completely


def read(folder: pathlib.Path, fix_command_token: bool = True) -> Tokenizer | None:
    """The tokenizer in a folder, or None.

    `fix_command_token` is for a Chinese vocabulary without added_tokens.json: see `chinese_commands`.
    Raises FormatError when the files are damaged or contradict each other.
    """
    try:
        return _read(folder, fix_command_token)
    except FormatError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise FormatError(f"the tokenizer in {folder} cannot be read: {error}") from error


def _read(folder, fix_command_token):
    if (folder / "tokenizer").is_dir():  # as in a run folder, and where the hub's code cannot express a tokenizer
        return tokenizers.load(folder / "tokenizer")
    if "kind" in _json(folder / tokenizers.SETTINGS_FILE):  # other libraries use that file name, too
        return tokenizers.load(folder)
    config, added = (_json(folder / name) for name in (_CONFIG, _ADDED))
    kind = _kind(folder, config)
    if kind is None:
        return None
    if _OURS in config:
        return kind.load(folder, config[_OURS])
    bare = kind.from_files(folder, ())
    return bare.with_commands(_commands(bare, folder, added, fix_command_token))


def _json(path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} is no JSON object")
    return value


def _kind(folder, config) -> type[ReleasedTokenizer] | None:
    stated = str(config.get("tokenizer_class", ""))
    names = {
        "GLMBertTokenizer": WordPieceTokenizer,
        "GLMGPT2Tokenizer": ByteBPETokenizer,
        "GLMRobertaTokenizer": ByteBPETokenizer,
        "GLMChineseTokenizer": ChineseSentencePieceTokenizer,
    }
    if stated in names:
        return names[stated]
    if (folder / MODEL_FILE).is_file():
        return ChineseSentencePieceTokenizer
    if (folder / "vocab.txt").is_file():
        return WordPieceTokenizer
    return ByteBPETokenizer if (folder / "merges.txt").is_file() else None


def _commands(bare, folder, added, fix_command_token):
    """The release's command tokens, with the ids that added_tokens.json states; `bare` is the tokenizer without any."""
    if not all(type(i) is int and i >= 0 for i in added.values()):
        raise FormatError(f"{folder / _ADDED} maps a token to something that is no id")
    masks = {"task_mask": "[gMASK]" in added}
    vocabulary = next(iter(bare.files().values()))
    if isinstance(bare, ChineseSentencePieceTokenizer):
        commands = chinese_commands(vocabulary, fix_command_token=fix_command_token or bool(added))
    elif isinstance(bare, WordPieceTokenizer):
        commands = bert_commands(vocabulary, **masks)
    else:
        commands = (roberta_commands if _is_roberta(vocabulary) else gpt2_commands)(vocabulary, **masks)
    if not added:
        return commands
    kept = [
        dataclasses.replace(command, id=added.get(command.text, command.id))
        for command in commands
        if command.text in added or command.id < bare.size
    ]
    known = {command.text for command in kept}
    return kept + [Command("added", text, i) for text, i in added.items() if text not in known]


def _is_roberta(vocabulary):
    return b'"<mask>"' in vocabulary


def for_hub(tokenizer: ReleasedTokenizer) -> tuple[ReleasedTokenizer, dict[int, tuple[int, str]]]:
    """The tokenizer with the hub's ids, and which rows of the vocabulary these need: new id -> (old id, why).

    The hub gives RoBERTa's mask and 10b-chinese's [gMASK] rows of their own, as the original's conversion to it does.
    """
    ids = {command.name: command.id for command in tokenizer.commands}
    moved: dict[str, int] = {}
    if isinstance(tokenizer, ChineseSentencePieceTokenizer) and "gMASK" in ids and ids["gMASK"] == ids["eop"]:
        moved, why = {"gMASK": ids["eop"] + 2}, "trained without fix_command_token, [gMASK] shares <|endofpiece|>'s row"
    elif (
        isinstance(tokenizer, ByteBPETokenizer)
        and tokenizer.vocabulary_token(ids["MASK"]) == "<mask>"
        and "gMASK" not in ids
    ):
        moved, why = {"MASK": tokenizer.num_tokens}, "the hub's [MASK] comes after the start and end tokens"
    if not moved:
        return tokenizer, {}
    commands = [dataclasses.replace(c, id=moved.get(c.name, c.id)) for c in tokenizer.commands]
    rows = {new: (ids[name], why) for name, new in moved.items()}
    return tokenizer.with_commands(commands), rows


def files(tokenizer: ReleasedTokenizer) -> dict[str, bytes]:
    """The files of a tokenizer by the names that the hub's code expects."""
    if isinstance(tokenizer, ByteBPETokenizer):
        name = "GLMRobertaTokenizer" if _is_roberta(tokenizer.files()["vocab.json"]) else "GLMGPT2Tokenizer"
    else:
        name = {WordPieceTokenizer: "GLMBertTokenizer"}.get(type(tokenizer), "GLMChineseTokenizer")
    texts = {command.name: command.text for command in tokenizer.commands}
    config = {
        "tokenizer_class": name,
        "auto_map": {"AutoTokenizer": [f"tokenization_glm.{name}", None]},
        "truncation_side": "left",
        _OURS: tokenizer.settings(),
    }
    if name == "GLMBertTokenizer":
        config["do_lower_case"] = True
    elif name != "GLMRobertaTokenizer":
        config |= {"eos_token": texts["eos"], "pad_token": texts["pad"], "cls_token": texts["ENC"]}
    config |= {"mask_token": texts["MASK"]}
    added = {command.text: command.id for command in tokenizer.commands if command.id >= tokenizer.size}
    result = {name: json.dumps(value, indent=2).encode() for name, value in ((_CONFIG, config), (_ADDED, added))}
    return tokenizer.files() | result
