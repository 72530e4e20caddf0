"""What the tokenizers of GLM's releases have in common: a vocabulary, and command tokens with the ids of each release.

The original splits text at the names of its command tokens and gives what is between to WordPiece, byte-level BPE or
SentencePiece (its EncodeAsIds); `encode_commands` does the same.
"""

import abc
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from glm_jax.tokenizers.base import MULTIPLE_KEY, Tokenizer, TokenizerError
from glm_jax.tokenizers.special import SpecialTokens

# The original's name of a command token -> field of SpecialTokens.
_FIELDS = {"pad": "pad", "eos": "eos", "ENC": "cls", "MASK": "mask", "sop": "start", "eop": "end"}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command token: the original's name for it, what it looks like in text, its id, whether it swallows the
    whitespace on its left."""

    name: str
    text: str
    id: int
    lstrip: bool = False


def number(size: int, commands: Sequence[tuple[str, str, bool]]) -> list[Command]:
    """Commands (name, text, lstrip) with the ids that follow a vocabulary of `size`, in order."""
    return [Command(name, text, size + i, lstrip) for i, (name, text, lstrip) in enumerate(commands)]


def mask_commands(size: int, *, task_mask: bool, block_mask: bool, lstrip: bool) -> list[Command]:
    """The masks that only some releases have, after `size` tokens: --task-mask, then --block-mask-prob."""
    masks = [("gMASK", "[gMASK]", lstrip), ("sMASK", "[sMASK]", lstrip)] if task_mask else []
    return number(size, [*masks, *([("dBLOCK", "[dBLOCK]", False)] if block_mask else [])])


class ReleasedTokenizer(Tokenizer):
    """A released vocabulary with its command tokens.

    Args:
      size: entries of the vocabulary, without command tokens.
      commands: in the original's order; of two with one id, the later gives that id its name.
      pad_vocab_to_multiple_of: every release pads the vocabulary to a multiple of 128.

    Raises:
      TokenizerError: ids that are negative, or names that mean two ids.
    """

    kind: str

    def __init__(self, size: int, commands: Sequence[Command], pad_vocab_to_multiple_of: int = 128):
        if type(pad_vocab_to_multiple_of) is not int or pad_vocab_to_multiple_of < 1:
            raise TokenizerError(
                f"pad_vocab_to_multiple_of must be a whole number of at least 1, not {pad_vocab_to_multiple_of!r}"
            )
        self.commands = tuple(commands)
        self.pad_vocab_to_multiple_of = pad_vocab_to_multiple_of
        self.num_tokens = max([size, *(command.id + 1 for command in self.commands)])
        self.size = size
        self._of_text: dict[str, Command] = {}
        for command in self.commands:
            if command.id < 0 or self._of_text.setdefault(command.text, command).id != command.id:
                raise TokenizerError(f"command token {command.text} cannot have the id {command.id}")
        self._of_id = {command.id: command for command in self.commands}
        self._pattern = re.compile(
            "|".join(re.escape(t) for t in sorted(self._of_text, key=len, reverse=True)) or "(?!)"
        )

    @functools.cached_property
    def special(self) -> SpecialTokens:
        """GLM's special ids. A release without [sMASK] and [gMASK] uses [MASK] for every objective, as it was trained.

        [dBLOCK], where a release lacks it, is the id that the original would give it next: a padding row.
        Raises TokenizerError for a vocabulary without GLM's start and end tokens.
        """
        ids = {command.name: command.id for command in self.commands}
        if missing := [name for name in _FIELDS if name not in ids]:
            raise TokenizerError(
                f"these command tokens are missing, so this is no tokenizer of GLM: {', '.join(missing)}"
            )
        free = self.num_tokens if self.num_tokens < self.vocab_size else ids["MASK"]
        return SpecialTokens(
            **{field: ids[name] for name, field in _FIELDS.items()},
            sentence_mask=ids.get("sMASK", ids["MASK"]),
            generation_mask=ids.get("gMASK", ids["MASK"]),
            block_mask=ids.get("dBLOCK", free),
        )

    @abc.abstractmethod
    def _encode_text(self, text: str) -> list[int]:
        """Ids of text without command tokens."""

    @abc.abstractmethod
    def _decode_text(self, ids: list[int]) -> str:
        """The text of vocabulary ids."""

    @abc.abstractmethod
    def _vocabulary_token(self, token_id: int) -> str:
        """The vocabulary entry of an id below the vocabulary's size."""

    def encode(self, text: str) -> list[int]:
        return self._encode_text(text) if text.strip() else []

    def encode_commands(self, text: str) -> list[int]:
        """Ids of text in which the names of command tokens stand for these: the original's EncodeAsIds."""
        if not text.strip():
            return []
        ids: list[int] = []
        done = 0
        for match in self._pattern.finditer(text):
            command, part = self._of_text[match[0]], text[done : match.start()]
            part = part.rstrip() if command.lstrip else part
            ids += self._encode_text(part) if part else []
            ids.append(command.id)
            done = match.end()
        return ids + (self._encode_text(text[done:]) if text[done:] else [])

    def decode(self, ids: Sequence[int], *, print_special: bool = False) -> str:
        ids = [int(i) for i in ids]
        self.check_ids(ids)
        hidden = set() if print_special else set(self.special_ids())
        parts: list[str] = []
        run: list[int] = []
        for token_id in [*ids, None]:
            if token_id is not None and token_id not in self._of_id and token_id < self.size:
                run.append(token_id)
                continue
            if run:
                parts.append(self._decode_text(run))
                run = []
            if token_id in self._of_id and token_id not in hidden:
                parts.append(self._of_id[token_id].text)
        return self._join(parts)

    def _join(self, parts):
        return "".join(parts)

    def id_to_token(self, token_id: int) -> str:
        self.check_ids([token_id])
        if token_id in self._of_id:
            return self._of_id[token_id].text
        return self._vocabulary_token(token_id) if token_id < self.size else f"[UNUSED{token_id}]"

    def _identity(self) -> dict[str, Any]:
        commands = [dataclasses.astuple(command) for command in self.commands]
        return {"kind": self.kind, MULTIPLE_KEY: self.pad_vocab_to_multiple_of, "commands": commands}

    def settings(self) -> dict[str, Any]:
        return self._identity() | {"fingerprint": self.fingerprint()}

    def fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps(self._identity()).encode())
        for name, content in sorted(self.files().items()):
            digest.update(name.encode() + b"\0" + content)
        return digest.hexdigest()

    def with_commands(self, commands: Sequence[Command]) -> "ReleasedTokenizer":
        """The same vocabulary with other command tokens."""
        build, arguments = self.__reduce__()
        return build(*arguments[:-2], commands, self.pad_vocab_to_multiple_of)

    def vocabulary_token(self, token_id: int) -> str | None:
        """The vocabulary's own entry of an id, also where a command token has its id; None after its end."""
        return self._vocabulary_token(token_id) if token_id < self.size else None

    @classmethod
    def load(cls, directory, settings: Mapping) -> "ReleasedTokenizer":
        """Reads what `save` wrote; `settings` is its tokenizer.json. Raises TokenizerError when a file has changed."""
        commands = [Command(*values) for values in settings["commands"]]
        tokenizer = cls.from_files(directory, commands, settings[MULTIPLE_KEY])
        if tokenizer.fingerprint() != settings["fingerprint"]:
            raise TokenizerError(f"the tokenizer in {directory} is not the one that was saved: a file is damaged")
        return tokenizer

    @classmethod
    @abc.abstractmethod
    def from_files(
        cls, directory, commands: Sequence[Command], pad_vocab_to_multiple_of: int = 128
    ) -> "ReleasedTokenizer":
        """Reads the files of `files`."""
