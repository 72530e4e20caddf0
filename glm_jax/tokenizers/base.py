"""What the rest of GLM needs from a tokenizer, whatever its vocabulary is made of."""

import abc
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Integer

from glm_jax.files import write_atomic
from glm_jax.tokenizers.special import SpecialTokens

SETTINGS_FILE = "tokenizer.json"
# `pad_vocab_to_multiple_of` in saved settings and in fingerprints. Saved tokenizers have this name, so it stays.
MULTIPLE_KEY = "vocab_multiple"
MASK_WORDS = {"[MASK]": "mask", "[sMASK]": "sentence_mask", "[gMASK]": "generation_mask"}
SENTENCE_MARKS = ".?!;:。？！；…\n"  # noqa: RUF001 (Chinese marks)
# A mask word swallows the whitespace on its left, as in the original: "a [MASK] b" is `a`, mask, ` b`, which is what
# the corruption makes of "a x b" when it blanks out ` x`.
_MASK_PATTERN = re.compile(r"\s*(" + "|".join(re.escape(word) for word in MASK_WORDS) + ")")


class TokenizerError(ValueError):
    """A vocabulary, a saved tokenizer or a token id that cannot be used."""


class Tokenizer(abc.ABC):
    """Text to ids and back.

    Attributes:
      special: ids of GLM's command tokens.
      num_tokens: rows of the vocabulary that mean something.
      pad_vocab_to_multiple_of: `vocab_size` is padded up to a multiple of this, so that the vocabulary matrix can be
        sharded.
    """

    special: SpecialTokens
    num_tokens: int
    pad_vocab_to_multiple_of: int

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding matrix, V: `num_tokens` rounded up to a multiple of `pad_vocab_to_multiple_of`."""
        return -(-self.num_tokens // self.pad_vocab_to_multiple_of) * self.pad_vocab_to_multiple_of

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of plain text; adds no special token, and a special token's name in the text stays text."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int] | Integer[np.ndarray, "L"], *, print_special: bool = False) -> str:
        """The text of `ids`. Special ids are left out, or written by name where `print_special` is set."""

    @abc.abstractmethod
    def id_to_token(self, token_id: int) -> str:
        """The vocabulary entry of one id; `[UNUSEDn]` for a padding row."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """A hash that changes exactly when the ids of some text may change (hexadecimal)."""

    @abc.abstractmethod
    def files(self) -> dict[str, bytes]:
        """The content of the vocabulary's files, by name."""

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """The content of tokenizer.json: the tokenizer's "kind", and what its files do not say."""

    def save(self, directory: str | os.PathLike) -> None:
        """Writes the tokenizer to `directory`, to be read by `glm_jax.tokenizers.load`.

        tokenizer.json is written last: where it exists, the tokenizer is complete.
        """
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            write_atomic(directory / name, content)
        write_atomic(directory / SETTINGS_FILE, json.dumps(self.settings(), indent=2) + "\n")

    def encode_continuation(self, text: str) -> list[int]:
        """Ids of text that follows a special token directly; by default the same as `encode`."""
        return self.encode(text)

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a prompt, in which [MASK], [sMASK] and [gMASK] stand for blanks. Adds no other special token."""
        parts = _MASK_PATTERN.split(text)
        ids = list(self.encode(parts[0]))
        for word, following in zip(parts[1::2], parts[2::2], strict=True):
            ids.append(getattr(self.special, MASK_WORDS[word]))
            if following.strip():  # whitespace between two blanks, or after the last, says nothing
                ids.extend(self.encode_continuation(following))
        return ids

    def mark_text(self, token_id: int) -> str:
        """The text in which `sentence_ends` looks for marks; a byte-level vocabulary may translate its bytes here."""
        return self.id_to_token(token_id)

    def sentence_ends(self, marks: str = SENTENCE_MARKS) -> Bool[np.ndarray, "V"]:
        """Which tokens end a sentence: their string contains any of `marks` (the original's rule, so `.com` does)."""
        ends = np.zeros(self.vocab_size, np.bool_)
        special = set(self.special_ids())
        for token_id in range(self.num_tokens):
            if token_id not in special:
                ends[token_id] = any(mark in self.mark_text(token_id) for mark in marks)
        return ends

    def special_ids(self) -> tuple[int, ...]:
        """The ids of `special`, in field order."""
        return tuple(vars(self.special).values())

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raises TokenizerError for an id outside the vocabulary."""
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise TokenizerError(f"token id {token_id} is outside the vocabulary 0..{self.vocab_size - 1}")
