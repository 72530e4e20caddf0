"""Tokenizers behind one small interface, and GLM's special tokens."""

import importlib
import json
import os
import socket

from etils import epath

from glm_jax.tokenizers.base import Tokenizer, TokenizerError
from glm_jax.tokenizers.special import SpecialTokens

__all__ = ["SpecialTokens", "Tokenizer", "TokenizerError", "load"]

SETTINGS_FILE = "tokenizer.json"
# kind in tokenizer.json -> the class that reads it, imported only when needed
KINDS = {
    "sentencepiece": ("glm_jax.tokenizers.sentencepiece_tokenizer", "SentencePieceTokenizer"),
    "wordpiece": ("glm_jax.tokenizers.wordpiece", "WordPieceTokenizer"),
    "byte_bpe": ("glm_jax.tokenizers.byte_bpe", "ByteBPETokenizer"),
    "chinese_sentencepiece": ("glm_jax.tokenizers.chinese_sentencepiece", "ChineseSentencePieceTokenizer"),
}


def load(directory) -> Tokenizer:
    """Reads a tokenizer that `Tokenizer.save` wrote.

    Raises:
      TokenizerError: there is no complete tokenizer in `directory`, or its kind is unknown.
    """
    directory = epath.Path(directory)
    try:
        settings = json.loads((directory / SETTINGS_FILE).read_text())
    except FileNotFoundError:
        raise TokenizerError(f"no tokenizer in {directory}: {SETTINGS_FILE} is missing") from None
    except ValueError as error:  # not JSON, or not text
        raise TokenizerError(f"{directory / SETTINGS_FILE} is damaged: {error}") from error
    if settings.get("kind") not in KINDS:
        raise TokenizerError(f"tokenizer kind {settings.get('kind')!r} is not one of {', '.join(KINDS)}")
    module, name = KINDS[settings["kind"]]
    try:
        return getattr(importlib.import_module(module), name).load(directory, settings)
    except (FileNotFoundError, KeyError) as error:
        raise TokenizerError(f"the tokenizer in {directory} is incomplete: {error}") from error


def write_settings(directory, settings: dict) -> None:
    """Writes tokenizer.json; a tokenizer's `save` does this last, as the sign that it is complete."""
    write_file(epath.Path(directory) / SETTINGS_FILE, (json.dumps(settings, indent=2) + "\n").encode())


def write_file(path: epath.Path, content: bytes) -> None:
    """Writes a file in one move, under a temporary name that no other process of any machine uses."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
