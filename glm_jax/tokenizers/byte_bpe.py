"""GPT-2's and RoBERTa's byte-level BPE (Radford et al. 2019; Liu et al. 2019) with GLM's command tokens: 2b, 10b and
roberta-large."""

import json
from collections.abc import Sequence

from etils import epath

from glm_jax.tokenizers.base import TokenizerError
from glm_jax.tokenizers.released import Command, ReleasedTokenizer, mask_commands, number

VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"
_END = "<|endoftext|>"


class ByteBPETokenizer(ReleasedTokenizer):
    """Merges of bytes, within words split as GPT-2 splits them; every text can be encoded and decoded exactly.

    Args:
      vocabulary: the content of vocab.json.
      merges: the content of merges.txt.
      commands: see `gpt2_commands` and `roberta_commands`.
    """

    kind = "byte_bpe"

    def __init__(
        self, vocabulary: bytes, merges: bytes, commands: Sequence[Command], pad_vocab_to_multiple_of: int = 128
    ):
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        self._vocabulary, self._merges = vocabulary, merges
        ids = _read_vocabulary(vocabulary)
        self._tokens = {i: token for token, i in ids.items()}
        super().__init__(len(ids), commands, pad_vocab_to_multiple_of)
        try:
            lines = merges.decode("utf-8").split("\n")[1:]  # the first line is a version
            pairs = [tuple(line.split()) for line in lines if line.strip()]
            self._tokenizer = Tokenizer(models.BPE(vocab=ids, merges=pairs))
        except Exception as error:  # the library raises bare exceptions
            raise TokenizerError(f"the merges do not belong to the vocabulary: {error}") from error
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        self._tokenizer.decoder = decoders.ByteLevel()

    def __reduce__(self):
        return type(self), (self._vocabulary, self._merges, self.commands, self.pad_vocab_to_multiple_of)

    def _encode_text(self, text):
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _decode_text(self, ids):
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _vocabulary_token(self, token_id):
        return self._tokens[token_id]

    def files(self) -> dict[str, bytes]:
        return {VOCAB_FILE: self._vocabulary, MERGES_FILE: self._merges}

    @classmethod
    def from_files(
        cls, directory, commands: Sequence[Command], pad_vocab_to_multiple_of: int = 128
    ) -> "ByteBPETokenizer":
        directory = epath.Path(directory)
        contents = [(directory / name).read_bytes() for name in (VOCAB_FILE, MERGES_FILE)]
        return cls(*contents, commands, pad_vocab_to_multiple_of)


def _read_vocabulary(vocabulary):
    try:
        ids = json.loads(vocabulary)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"the BPE vocabulary is no JSON: {error}") from error
    if not isinstance(ids, dict) or not all(type(i) is int for i in ids.values()):
        raise TokenizerError("the BPE vocabulary does not map token strings to ids")
    if sorted(ids.values()) != list(range(len(ids))):
        raise TokenizerError(f"the BPE vocabulary has {len(ids)} tokens, whose ids are not 0 to {len(ids) - 1}")
    return ids


def gpt2_commands(
    vocabulary: bytes, *, block: bool = True, task_mask: bool = True, block_mask: bool = False
) -> list[Command]:
    """The command tokens of the models with GPT-2's vocabulary; `block=False` has none of GLM's own."""
    ids = _read_vocabulary(vocabulary)
    if _END not in ids:
        raise TokenizerError(f"the BPE vocabulary has no {_END}: it is not GPT-2's")
    ends = [Command("pad", _END, ids[_END]), Command("eos", _END, ids[_END])]
    if not block:
        return ends
    names = [
        ("sop", "<|startofpiece|>", False), ("eop", "<|endofpiece|>", False), ("ENC", "[CLS]", False),
        ("MASK", "[MASK]", True), ("sep", "[SEP]", False), ("unk", "[UNK]", False),
    ]  # fmt: skip
    masks = mask_commands(len(ids) + 6, task_mask=task_mask, block_mask=block_mask, lstrip=True)
    return ends + number(len(ids), names) + masks


def roberta_commands(vocabulary: bytes, *, task_mask: bool = False, block_mask: bool = False) -> list[Command]:
    """The command tokens of roberta-large, which uses RoBERTa's own <s>, </s>, <unk> and <mask>."""
    ids = _read_vocabulary(vocabulary)
    if missing := {"<s>", "</s>", "<unk>", "<mask>"} - set(ids):
        raise TokenizerError(f"the BPE vocabulary has no {', '.join(sorted(missing))}: it is not RoBERTa's")
    end = ids["</s>"]
    commands = [
        Command("pad", _END, end), Command("eos", _END, end), Command("sep", "[SEP]", end),
        Command("ENC", "[CLS]", ids["<s>"]), Command("MASK", "[MASK]", ids["<mask>"], True),
        Command("unk", "[UNK]", ids["<unk>"]),
    ]  # fmt: skip
    blocks = number(len(ids), [("sop", "<|startofpiece|>", False), ("eop", "<|endofpiece|>", False)])
    return commands + blocks + mask_commands(len(ids) + 2, task_mask=task_mask, block_mask=block_mask, lstrip=True)
