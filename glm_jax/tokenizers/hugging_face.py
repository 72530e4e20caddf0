"""Tokenizers of the Hugging Face libraries, with GLM's special tokens."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Integer

from glm_jax.files import nearest
from glm_jax.tokenizers.base import MULTIPLE_KEY, Tokenizer, TokenizerError
from glm_jax.tokenizers.special import SPECIAL_STRINGS, SpecialTokens

MODEL_FILE = "hf_tokenizer.json"  # the library's own tokenizer.json, whose name our settings have taken


def from_hf(
    tokenizer: Any,
    special: SpecialTokens | Mapping[str, str | int] | None = None,
    *,
    pad_vocab_to_multiple_of: int = 128,
) -> "HuggingFaceTokenizer":
    """A tokenizer for GLM from a `tokenizers.Tokenizer`, or from a fast tokenizer of transformers.

    The tokenizer is copied; truncation, padding and post-processing of the original take no part.

    Args:
      tokenizer: the object; a fast tokenizer of transformers has one as `backend_tokenizer`.
      special: GLM's special tokens: a mapping from fields of SpecialTokens to token strings or ids of the vocabulary,
        or SpecialTokens with ids. Fields that a mapping does not name get GLM's own token strings, such as [MASK] and
        <|startofpiece|>, which are added at the end of the vocabulary where it has none.
      pad_vocab_to_multiple_of: `vocab_size` is padded up to a multiple of this.

    Raises:
      TokenizerError: another kind of object, a field or a token that does not exist, or one id for tokens that must
        differ.
    """
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Library

    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        raise TokenizerError(
            f"from_hf takes a tokenizers.Tokenizer or a fast tokenizer of transformers, not {type(tokenizer).__name__}"
        )
    copy = Library.from_str(backend.to_str())
    chosen = vars(special) if isinstance(special, SpecialTokens) else dict(special or {})
    if unknown := sorted(set(chosen) - set(SPECIAL_STRINGS)):
        raise TokenizerError(f"unknown special token {unknown[0]!r}; nearest: {nearest(unknown[0], SPECIAL_STRINGS)}")
    for name, token in chosen.items():
        _check_exists(copy, name, token)
    tokens = SPECIAL_STRINGS | chosen
    strings = {name: copy.id_to_token(token) if isinstance(token, int) else token for name, token in tokens.items()}
    # Marked as special, they are not looked for in texts; those that the vocabulary lacks get the next ids.
    copy.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in strings.values()])
    ids = SpecialTokens(**{name: copy.token_to_id(text) for name, text in strings.items()})
    return HuggingFaceTokenizer(copy.to_str(), ids, pad_vocab_to_multiple_of=pad_vocab_to_multiple_of)


def _check_exists(library, name, token):
    if isinstance(token, bool) or not isinstance(token, str | int):
        raise TokenizerError(f"special token {name} is {token!r}: give a token string or an id")
    missing = library.id_to_token(token) is None if isinstance(token, int) and token >= 0 else True
    if isinstance(token, int) and missing:
        raise TokenizerError(f"special token {name}: the vocabulary has no id {token}")
    if isinstance(token, str) and library.token_to_id(token) is None:
        raise TokenizerError(
            f"special token {name}: the vocabulary has no {token!r}; nearest: {nearest(token, library.get_vocab())}"
        )


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library whose vocabulary holds GLM's special tokens; `from_hf` makes one.

    Args:
      serialized: what the library's `to_str` returned.
      special: ids of the special tokens.
      pad_vocab_to_multiple_of: `vocab_size` is padded up to a multiple of this.

    Raises:
      TokenizerError: text of another kind, ids outside the vocabulary, or one id for tokens that must differ.
    """

    def __init__(self, serialized: str, special: SpecialTokens, *, pad_vocab_to_multiple_of: int = 128):
        from tokenizers import Tokenizer as Library

        if type(pad_vocab_to_multiple_of) is not int or pad_vocab_to_multiple_of < 1:
            raise TokenizerError(
                f"pad_vocab_to_multiple_of must be a whole number of at least 1, not {pad_vocab_to_multiple_of!r}"
            )
        try:
            self._library = Library.from_str(serialized)
        except Exception as error:  # the library raises bare exceptions
            raise TokenizerError(f"the tokenizer of the tokenizers library is damaged: {error}") from error
        self._library.no_truncation()
        self._library.no_padding()
        self._library.encode_special_tokens = True  # their names in a text stay text
        self._serialized, self.special = serialized, special
        self.pad_vocab_to_multiple_of = pad_vocab_to_multiple_of
        self.num_tokens = max(self._library.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._special_ids = frozenset(self.special_ids())
        self._check_special()

    def _check_special(self):
        outside = [name for name, i in vars(self.special).items() if not 0 <= i < self.num_tokens]
        if outside:
            raise TokenizerError(f"special token {outside[0]} has no id below {self.num_tokens}: {self.special}")
        distinct = {name: getattr(self.special, name) for name in ("mask", "start", "end", "eos")}
        if len(set(distinct.values())) < len(distinct):
            raise TokenizerError(f"the special tokens {', '.join(distinct)} need different ids, not {distinct}")

    def __reduce__(self):
        return _rebuild, (self._serialized, self.special, self.pad_vocab_to_multiple_of)

    def encode(self, text: str) -> list[int]:
        ids = self._library.encode(text, add_special_tokens=False).ids
        # A vocabulary may spell a special token in one piece of its own; in a text it has no such meaning.
        return [i for i in ids if i not in self._special_ids]

    def decode(self, ids: Sequence[int] | Integer[np.ndarray, "L"], *, print_special: bool = False) -> str:
        ids = [int(i) for i in ids]
        self.check_ids(ids)
        if not print_special:
            return self._decode_text([i for i in ids if i not in self._special_ids])
        masks = {self.special.mask, self.special.sentence_mask, self.special.generation_mask}
        text, run = "", []
        for token_id in [*ids, None]:
            if token_id is not None and token_id not in self._special_ids:
                run.append(token_id)
                continue
            text, run = text + self._decode_text(run), []
            if token_id is not None:
                # The space that a mask swallowed is given back, so that encode_prompt reads the result as these ids.
                text += " " if token_id in masks and text and not text[-1].isspace() else ""
                text += self.id_to_token(token_id)
        return text

    def _decode_text(self, ids):
        return self._library.decode([i for i in ids if i < self.num_tokens], skip_special_tokens=False)

    def id_to_token(self, token_id: int) -> str:
        self.check_ids([token_id])
        return self._library.id_to_token(int(token_id)) or f"[UNUSED{token_id}]"

    def mark_text(self, token_id: int) -> str:
        return self._decode_text([token_id])  # byte-level vocabularies spell bytes as other characters

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.settings()).encode() + self._serialized.encode()).hexdigest()

    def files(self) -> dict[str, bytes]:
        return {MODEL_FILE: self._serialized.encode()}

    def settings(self) -> dict[str, Any]:
        return {"kind": "hugging_face", MULTIPLE_KEY: self.pad_vocab_to_multiple_of, "special": vars(self.special)}

    @classmethod
    def load(cls, directory: str | os.PathLike, settings: Mapping[str, Any]) -> "HuggingFaceTokenizer":
        """Reads what `save` wrote; `settings` is its tokenizer.json."""
        serialized = (epath.Path(directory) / MODEL_FILE).read_text()
        return _rebuild(serialized, SpecialTokens(**settings["special"]), settings[MULTIPLE_KEY])


def _rebuild(serialized, special, pad_vocab_to_multiple_of):
    return HuggingFaceTokenizer(serialized, special, pad_vocab_to_multiple_of=pad_vocab_to_multiple_of)
