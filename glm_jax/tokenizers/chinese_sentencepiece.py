"""The SentencePiece vocabulary of the Chinese models, with GLM's command tokens: large-chinese, 10b-chinese."""

from collections.abc import Sequence

from etils import epath

from glm_jax.tokenizers.released import Command, ReleasedTokenizer, number
from glm_jax.tokenizers.sentencepiece_tokenizer import processor

MODEL_FILE = "cog-pretrain.model"


class ChineseSentencePieceTokenizer(ReleasedTokenizer):
    """A SentencePiece model whose command tokens come after its vocabulary.

    Args:
      model: the serialised model.
      commands: see `chinese_commands`.
    """

    kind = "chinese_sentencepiece"

    def __init__(self, model: bytes, commands: Sequence[Command], pad_vocab_to_multiple_of: int = 128):
        self._model = model
        self._processor = processor(model)
        super().__init__(self._processor.get_piece_size(), commands, pad_vocab_to_multiple_of)

    def __reduce__(self):
        return type(self), (self._model, self.commands, self.pad_vocab_to_multiple_of)

    def _encode_text(self, text):
        return self._processor.encode(text)

    def _decode_text(self, ids):
        return self._processor.decode(ids)

    def _vocabulary_token(self, token_id):
        return self._processor.id_to_piece(token_id)

    def files(self) -> dict[str, bytes]:
        return {MODEL_FILE: self._model}

    @classmethod
    def from_files(cls, directory, commands: Sequence[Command], pad_vocab_to_multiple_of: int = 128):
        return cls((epath.Path(directory) / MODEL_FILE).read_bytes(), commands, pad_vocab_to_multiple_of)


def chinese_commands(
    model: bytes, *, fix_command_token: bool = True, task_mask: bool = True, block_mask: bool = False
) -> list[Command]:
    """The command tokens of the Chinese models.

    Args:
      fix_command_token: as large-chinese was trained. False is 10b-chinese: there the original counted one id too few,
        so that [gMASK] has the id of <|endofpiece|>; use it with that model's original weights only.
    """
    size = processor(model).get_piece_size()
    start = size + 6  # the original skips one id
    block_free = number(size, [("eos", "<|endoftext|>", False), ("sep", "[SEP]", False), ("ENC", "[CLS]", False),
                        ("MASK", "[MASK]", True), ("unk", "[UNK]", False)])  # fmt: skip
    commands = [Command("pad", "<|endoftext|>", size), *block_free]
    commands += number(start, [("sop", "<|startofpiece|>", False), ("eop", "<|endofpiece|>", False)])
    if fix_command_token:
        masks = [("sMASK", "[sMASK]", True), ("gMASK", "[gMASK]", True)] if task_mask else []
        return commands + number(start + 2, [*masks, *_block(block_mask)])
    masks = [("gMASK", "[gMASK]", True), ("sMASK", "[sMASK]", True)] if task_mask else []
    return commands + number(start + 1, [*masks, *_block(block_mask)])


def _block(block_mask):
    return [("dBLOCK", "[dBLOCK]", False)] if block_mask else []
