"""BERT's uncased WordPiece (Devlin et al. 2019) with GLM's command tokens: base, large, doc, sent, 410m, 515m."""

from collections.abc import Sequence

from etils import epath

from glm_jax.tokenizers.base import TokenizerError
from glm_jax.tokenizers.released import Command, ReleasedTokenizer, mask_commands, number

VOCAB_FILE = "vocab.txt"


class WordPieceTokenizer(ReleasedTokenizer):
    """Greedy longest-match pieces of lower-cased words without accents.

    Args:
      vocabulary: the content of BERT's vocab.txt.
      commands: see `bert_commands`.
    """

    kind = "wordpiece"

    def __init__(self, vocabulary: bytes, commands: Sequence[Command], pad_vocab_to_multiple_of: int = 128):
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

        self._vocabulary = vocabulary
        self._pieces = _pieces(vocabulary)
        super().__init__(len(self._pieces), commands, pad_vocab_to_multiple_of)
        ids = {piece: i for i, piece in enumerate(self._pieces)}
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
        return " ".join(self._pieces[i] for i in ids)

    def _join(self, parts):
        return " ".join(parts).replace(" ##", "")

    def _vocabulary_piece(self, token_id):
        return self._pieces[token_id]

    def files(self) -> dict[str, bytes]:
        return {VOCAB_FILE: self._vocabulary}

    @classmethod
    def from_files(
        cls, directory, commands: Sequence[Command], pad_vocab_to_multiple_of: int = 128
    ) -> "WordPieceTokenizer":
        return cls((epath.Path(directory) / VOCAB_FILE).read_bytes(), commands, pad_vocab_to_multiple_of)


def _pieces(vocabulary):
    try:
        pieces = [line.strip() for line in vocabulary.decode("utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise TokenizerError(f"the WordPiece vocabulary is not UTF-8: {error}") from error
    for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"):
        if piece not in pieces:
            raise TokenizerError(f"the WordPiece vocabulary has no {piece}: it is not BERT's")
    if len(set(pieces)) != len(pieces):
        twice = next(piece for i, piece in enumerate(pieces) if piece in pieces[:i])
        raise TokenizerError(f"the WordPiece vocabulary has {twice!r} twice")
    return pieces


def bert_commands(vocabulary: bytes, *, task_mask: bool = False, block_mask: bool = False) -> list[Command]:
    """The command tokens of the models with BERT's vocabulary. The released ones have no task masks."""
    of = {piece: i for i, piece in enumerate(_pieces(vocabulary))}
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
    return [*(Command(name, piece, of[piece]) for name, piece in names), *blocks, *masks]
