"""Whether a tokenizer belongs to a model."""

import logging
import os
import pathlib

from glm_jax.interop import hub_tokenizer
from glm_jax.interop.errors import FormatError
from glm_jax.interop.source import Source
from glm_jax.model.config import GLMConfig
from glm_jax.tokenizers.base import Tokenizer

logger = logging.getLogger(__name__)


def choose_tokenizer(
    given: Tokenizer | str | os.PathLike | None, folder: pathlib.Path, fix_command_token: bool = True
) -> Tokenizer | None:
    """The tokenizer `given`, or of the folder `given`; by default that of the checkpoint's `folder`, if it has one.

    Raises FormatError for a tokenizer that cannot be read, and where the folder `given` has none.
    """
    if isinstance(given, Tokenizer):
        return given
    tokenizer = hub_tokenizer.read(folder if given is None else pathlib.Path(given), fix_command_token)
    if tokenizer is None and given is not None:
        raise FormatError(f"{given} holds no tokenizer: expected vocab.txt, vocab.json with merges.txt, or *.model")
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer | None, config: GLMConfig, notes: list[str], exact: bool = True) -> None:
    """Adds a line about the vocabulary to `notes`; `exact` allows no other padding than the tokenizer's own.

    Raises FormatError for a tokenizer of another size.
    """
    size = config.vocab_size
    if tokenizer is None:
        notes.append(f"no tokenizer; the {size} rows of the vocabulary may include padding")
    elif tokenizer.num_tokens > size or (exact and size not in (tokenizer.num_tokens, tokenizer.vocab_size)):
        raise FormatError(
            f"the tokenizer has {tokenizer.num_tokens} tokens (padded {tokenizer.vocab_size}), the model {size}: "
            "they do not belong together; replace the tokenizer's files, or remove them to load the model alone"
        )
    else:
        padding = size - tokenizer.num_tokens
        notes.append(f"vocabulary {size}: {tokenizer.num_tokens} tokens and {padding} rows of padding")


def warn_of_shared_generation_mask(source: Source, config: GLMConfig) -> None:
    """Warns where the original's 10b-chinese gets the [gMASK] of other Chinese checkpoints: its row is not trained."""
    large = GLMConfig.named("10b-chinese")
    shape = (config.num_layers, config.hidden_size, config.vocab_size)
    if source.kind != "megatron" or shape != (large.num_layers, large.hidden_size, large.vocab_size):
        return
    if source.tokenizer is not None and source.tokenizer.special.generation_mask != source.tokenizer.special.end:
        note = "10b-chinese was trained with [gMASK] on <|endofpiece|>'s id: pass fix_command_token=False "
        note += "(convert --no-fix-command-token)"
        source.notes.append(note)
        logger.warning("%s: %s", source.path, note)
