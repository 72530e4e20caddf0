"""Tokenizers with one small interface, and GLM's special tokens."""

import importlib
import json

from etils import epath

from glm_jax.tokenizers.base import SETTINGS_FILE, Tokenizer, TokenizerError
from glm_jax.tokenizers.hugging_face import from_hf
from glm_jax.tokenizers.special import SpecialTokens

__all__ = ["SETTINGS_FILE", "SpecialTokens", "Tokenizer", "TokenizerError", "from_hf", "load"]

# kind in tokenizer.json -> the class that reads it, imported only when needed
KINDS = {
    "sentencepiece": ("glm_jax.tokenizers.sentencepiece_tokenizer", "SentencePieceTokenizer"),
    "wordpiece": ("glm_jax.tokenizers.wordpiece", "WordPieceTokenizer"),
    "byte_bpe": ("glm_jax.tokenizers.byte_bpe", "ByteBPETokenizer"),
    "hugging_face": ("glm_jax.tokenizers.hugging_face", "HuggingFaceTokenizer"),
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
