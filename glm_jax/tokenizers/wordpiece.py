"""BERT's uncased WordPiece (Devlin et al. 2019) with GLM's command tokens: base, large, doc, sent, 410m, 515m."""

from collections.abc import Sequence

from etils import epath

from glm_jax.tokenizers.base import TokenizerError
from glm_jax.tokenizers.released import Command, ReleasedTokenizer, mask_commands, number

VOCAB_FILE = "vocab.txt"


class WordPieceTokenizer(ReleasedTokenizer):
    """Greedy longest-match parts of lower-cased words without accents.

    Args:
      vocabulary: the content of BERT's vocab.txt.
      commands: see `bert_commands`.
    """

    kind = "wordpiece"

    def __init__(self, vocabulary: bytes, commands: Sequence[Command], pad_vocab_to_multiple_of: int = 128):
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

        self._vocabulary = vocabulary
        self._tokens = _read_vocabulary(vocabulary)
        super().__init__(len(self._tokens), commands, pad_vocab_to_multiple_of)
        ids = {token: i for i, token in enumerate(self._tokens)}
        model = models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100, continuing_subword_prefix="##")
        self._tokenizer = Tokenizer(model)
        self._tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def __reduce__(self):
        return type(self), (self._vocabulary, self.commands, self.pad_vocab_to_multiple_of)

    def _encode_text(self, text):
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _decode_text(self, ids):
        return " ".join(self._tokens[i] for i in ids)

    def _join(self, parts):
        return " ".join(parts).replace(" ##", "")

    def _vocabulary_token(self, token_id):
        return self._tokens[token_id]

    def files(self) -> dict[str, bytes]:
        return {VOCAB_FILE: self._vocabulary}

    @classmethod
    def from_files(
        cls, directory, commands: Sequence[Command], pad_vocab_to_multiple_of: int = 128
    ) -> "WordPieceTokenizer":
        return cls((epath.Path(directory) / VOCAB_FILE).read_bytes(), commands, pad_vocab_to_multiple_of)


def _read_vocabulary(vocabulary):
    try:
        tokens = [line.strip() for line in vocabulary.decode("utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise TokenizerError(f"the WordPiece vocabulary is not UTF-8: {error}") from error
    for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"):
        if token not in tokens:
            raise TokenizerError(f"the WordPiece vocabulary has no {token}: it is not BERT's")
    if len(set(tokens)) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if token in tokens[:i])
        raise TokenizerError(f"the WordPiece vocabulary has {twice!r} twice")
    return tokens


def bert_commands(vocabulary: bytes, *, task_mask: bool = False, block_mask: bool = False) -> list[Command]:
    """The command tokens of the models with BERT's vocabulary. The released ones have no task masks."""
    of = {token: i for i, token in enumerate(_read_vocabulary(vocabulary))}
    size = len(of)
    names = (
        ("pad", "[PAD]"),
        ("ENC", "[CLS]"),
        ("MASK", "[MASK]"),
        ("unk", "[UNK]"),
        ("sep", "[SEP]"),
        ("eos", "[PAD]"),
    )
    blocks = number(size, [("sop", "<|startofpiece|>", False), ("eop", "<|endofpiece|>", False)])
    masks = mask_commands(size + 2, task_mask=task_mask, block_mask=block_mask, lstrip=False)
    return [*(Command(name, token, of[token]) for name, token in names), *blocks, *masks]
