"""SentencePiece (Kudo and Richardson, 2018, arXiv 1808.06226) with GLM's nine special tokens, and its training."""

import hashlib
import io
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Integer

from glm_jax.tokenizers.base import MULTIPLE_KEY, Tokenizer, TokenizerError
from glm_jax.tokenizers.special import SPECIAL_STRINGS, SpecialTokens

MODEL_FILE = "sentencepiece.model"
NORMALIZATIONS = ("nmt_nfkc", "nmt_nfkc_cf", "nfkc", "identity")
MODEL_TYPES = ("unigram", "bpe")
_TRAINING_THREADS = 4  # part of the result: the sums of the EM steps are taken per thread, so never the CPU count
_CHUNK_CHARACTERS = 1000  # SentencePiece trains on sentences; what is longer than this is cut at a space
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model whose vocabulary holds GLM's special tokens.

    Args:
      model: the serialised SentencePiece model.
      pad_vocab_to_multiple_of: `vocab_size` is padded up to a multiple of this.
      special: ids of the special tokens; None looks up `SPECIAL_STRINGS` in the model. They are its control
        pieces, which have ids but which encoding a text never produces.

    Raises:
      TokenizerError: the model lacks a special token, or two of them share an id.
    """

    def __init__(self, model: bytes, *, pad_vocab_to_multiple_of: int = 128, special: SpecialTokens | None = None):
        if pad_vocab_to_multiple_of < 1:
            raise TokenizerError(f"pad_vocab_to_multiple_of must be at least 1, not {pad_vocab_to_multiple_of}")
        self._model = model
        self.pad_vocab_to_multiple_of = pad_vocab_to_multiple_of
        self._processor = processor(model)
        self._continuation = processor(_without_dummy_prefix(model))
        self._collapses_spaces = self._processor.encode("a  b") == self._processor.encode("a b")
        self.num_tokens = self._processor.get_piece_size()
        self.special = special or self._find_special()
        ids = self.special_ids()
        if len(set(ids)) != len(ids) or not all(0 <= i < self.num_tokens for i in ids):
            raise TokenizerError(f"special tokens need pairwise distinct ids below {self.num_tokens}: {self.special}")

    def _find_special(self) -> SpecialTokens:
        ids = {name: self._processor.piece_to_id(piece) for name, piece in SPECIAL_STRINGS.items()}
        missing = [
            SPECIAL_STRINGS[name] for name, i in ids.items() if self._processor.id_to_piece(i) != SPECIAL_STRINGS[name]
        ]
        if missing:
            raise TokenizerError(
                f"the SentencePiece model has no {', '.join(missing)}: train it with glm_jax.tokenizers, "
                "or pass `special` with the ids to use"
            )
        return SpecialTokens(**ids)

    def __reduce__(self):
        return _rebuild, (self._model, self.pad_vocab_to_multiple_of, self.special)

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def encode_continuation(self, text: str) -> list[int]:
        if not self._collapses_spaces:
            return self._continuation.encode(text)
        # Where the text begins with a space, the one that SentencePiece puts in front of every text is that space.
        return self._processor.encode(text) if text[:1].isspace() else self._continuation.encode(" ".join(text.split()))

    def decode(self, ids: Sequence[int] | Integer[np.ndarray, "L"], *, print_special: bool = False) -> str:
        ids = [int(i) for i in ids]
        self.check_ids(ids)
        special = set(self.special_ids())
        if not print_special:
            return self._processor.decode([i for i in ids if i not in special and i < self.num_tokens])
        masks = {self.special.mask, self.special.sentence_mask, self.special.generation_mask}
        text, run, reader = "", [], self._processor
        for token_id in [*ids, None]:
            if token_id is not None and token_id not in special and token_id < self.num_tokens:
                run.append(token_id)
                continue
            text, run = text + reader.decode(run), []
            if token_id is not None:
                # The space that a mask swallowed is given back, so that encode_prompt reads the result as these ids.
                text += " " if token_id in masks and text and not text[-1].isspace() else ""
                text, reader = text + self.id_to_token(token_id), self._continuation
        return text

    def id_to_token(self, token_id: int) -> str:
        self.check_ids([token_id])
        return self._processor.id_to_piece(token_id) if token_id < self.num_tokens else f"[UNUSED{token_id}]"

    def mark_text(self, token_id: int) -> str:
        piece = self.id_to_token(token_id)
        byte = _BYTE_PIECE.fullmatch(piece)
        return chr(int(byte[1], 16)) if byte and int(byte[1], 16) < 128 else piece

    def fingerprint(self) -> str:
        settings = json.dumps([self.pad_vocab_to_multiple_of, *self.special_ids()]).encode()
        return hashlib.sha256(b"sentencepiece" + settings + self._model).hexdigest()

    def files(self) -> dict[str, bytes]:
        return {MODEL_FILE: self._model}

    def settings(self) -> dict[str, Any]:
        return {
            "kind": "sentencepiece",
            MULTIPLE_KEY: self.pad_vocab_to_multiple_of,
            "special": vars(self.special),
        }

    @classmethod
    def load(cls, directory, settings: dict) -> "SentencePieceTokenizer":
        """Reads what `save` wrote; `settings` is its tokenizer.json."""
        model = (epath.Path(directory) / MODEL_FILE).read_bytes()
        special = SpecialTokens(**settings["special"])
        return cls(model, pad_vocab_to_multiple_of=settings[MULTIPLE_KEY], special=special)


def processor(model: bytes) -> Any:
    """What runs a serialised model. Raises TokenizerError for a damaged one."""
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise TokenizerError(f"the SentencePiece model is damaged: {error}; put the original file back") from error


def _without_dummy_prefix(model: bytes) -> bytes:
    """The model without the space that SentencePiece puts in front of every text: for text that follows a mask."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto.SerializeToString()


def _rebuild(model, pad_vocab_to_multiple_of, special):
    return SentencePieceTokenizer(model, pad_vocab_to_multiple_of=pad_vocab_to_multiple_of, special=special)


def train(
    texts: Iterable[str],
    *,
    vocab_size: int,
    normalization: str = "nmt_nfkc",
    byte_fallback: bool = True,
    model_type: str = "unigram",
    character_coverage: float = 0.9995,
    max_chunks: int | None = 200_000,
    pad_vocab_to_multiple_of: int = 128,
) -> SentencePieceTokenizer:
    """Trains SentencePiece on documents; the same texts and arguments give the same model, on any number of cores.

    Args:
      texts: the documents, read once.
      vocab_size: tokens to learn, the ten special ones (GLM's nine and [UNK]) and the 256 bytes included.
      normalization: `nmt_nfkc` folds every run of whitespace, newlines too, into one space; `identity` changes
        nothing, so that decoding gives the text back exactly (a newline is then a token of its own).
      byte_fallback: spell what the vocabulary lacks in bytes instead of [UNK].
      model_type: `unigram` or `bpe`.
      character_coverage: share of the characters that get a token of their own.
      max_chunks: train on a uniform sample of this many chunks of about 1,000 characters; None takes everything.
      pad_vocab_to_multiple_of: `vocab_size` of the tokenizer is padded up to a multiple of this.

    Raises:
      TokenizerError: an option is unknown, there is no text, or the vocabulary is larger (the message says the most
        that the corpus supports) or smaller (it says the least) than the corpus allows.
    """
    import sentencepiece

    if normalization not in NORMALIZATIONS:
        raise TokenizerError(f"normalization {normalization!r} is not one of {', '.join(NORMALIZATIONS)}")
    if model_type not in MODEL_TYPES:
        raise TokenizerError(f"model_type {model_type!r} is not one of {', '.join(MODEL_TYPES)}")
    chunks = (chunk for text in texts for chunk in _chunks(text))
    if max_chunks is not None:
        chunks = _sample(chunks, max_chunks)
    chunks = iter(chunks)
    first = next(chunks, None)
    if first is None:
        raise TokenizerError("no text to train a tokenizer on: the corpus is empty")
    identity = normalization == "identity"
    controls = [token for name, token in SPECIAL_STRINGS.items() if name not in ("pad", "eos")]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_chain(first, chunks),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            normalization_rule_name=normalization,
            remove_extra_whitespaces=not identity,
            user_defined_symbols=["\n"] if identity else [],
            byte_fallback=byte_fallback,
            character_coverage=character_coverage,
            pad_id=0,
            unk_id=1,
            eos_id=2,
            bos_id=-1,
            pad_piece=SPECIAL_STRINGS["pad"],
            unk_piece="[UNK]",
            eos_piece=SPECIAL_STRINGS["eos"],
            control_symbols=controls,
            num_threads=_TRAINING_THREADS,
            max_sentence_length=1 << 20,
            shuffle_input_sentence=False,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise TokenizerError(_explain(str(error), vocab_size)) from error
    return SentencePieceTokenizer(model.getvalue(), pad_vocab_to_multiple_of=pad_vocab_to_multiple_of)


def _explain(message: str, vocab_size: int) -> str:
    if limit := re.search(r"value <= (\d+)", message):
        return f"vocab_size {vocab_size} is more than this corpus supports: at most {limit[1]}"
    if least := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return (
            f"vocab_size {vocab_size} has no room for the special tokens, the bytes and the characters of this corpus: "
            f"at least {least[1]}, or a smaller character_coverage"
        )
    return f"SentencePiece could not train a vocabulary of {vocab_size} tokens: {message}"


def _chunks(text: str) -> Iterator[str]:
    """Lines, cut at a space where they are long; SentencePiece would skip a very long one silently."""
    for line in text.splitlines():
        start = 0
        while start < len(line):
            stop = start + _CHUNK_CHARACTERS
            if stop < len(line):
                space = line.rfind(" ", start + 1, stop + 1)
                stop = space if space > 0 else stop
            chunk = line[start:stop]
            if chunk.strip():
                yield chunk
            start = stop


def _sample(chunks: Iterator[str], count: int) -> list[str]:
    """A uniform sample of `count` chunks in one pass (Vitter's algorithm R), the same in every run."""
    rng, sample = random.Random(0), []
    for index, chunk in enumerate(chunks):
        if index < count:
            sample.append(chunk)
        elif (slot := rng.randrange(index + 1)) < count:
            sample[slot] = chunk
    return sample


def _chain(first, rest):
    yield first
    yield from rest
