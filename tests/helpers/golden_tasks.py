"""The original's arrays for tasks, and the released tokenizers that some of them need."""

import dataclasses
import json
import lzma
import os
import pathlib
from collections.abc import Sequence

import pytest

from glm_jax.tasks.encoding import Encoded
from glm_jax.tokenizers.base import Tokenizer
from glm_jax.tokenizers.byte_bpe import ByteBPETokenizer, gpt2_commands
from glm_jax.tokenizers.chinese_sentencepiece import ChineseSentencePieceTokenizer, chinese_commands
from glm_jax.tokenizers.special import SpecialTokens
from glm_jax.tokenizers.wordpiece import WordPieceTokenizer, bert_commands
from tests.helpers.paths import ROOT

FOLDER = ROOT / "tests" / "golden"
ASSETS = pathlib.Path(os.environ.get("GLM_JAX_ASSETS", ROOT.parent / "shared"))

# The toy ids of the arrays that need no vocabulary.
TOY = SpecialTokens(
    pad=0, eos=0, cls=1, mask=2, sentence_mask=8, generation_mask=7, start=5, end=6, block_mask=9
)  # fmt: skip

needs_vocabularies = pytest.mark.skipif(
    not (ASSETS / "tokenizers").is_dir(),
    reason=f"the released vocabularies are not at {ASSETS}/tokenizers; set GLM_JAX_ASSETS to the folder above",
)
needs_data = pytest.mark.skipif(
    not (ASSETS / "data").is_dir(), reason=f"no data sets at {ASSETS}/data; set GLM_JAX_ASSETS to the folder above"
)
DATA = ASSETS / "data"


def load(name: str):
    """The content of a JSON file, compressed or not."""
    path = FOLDER / name
    return json.loads(lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_text())


def tokenizer(kind: str, task_mask: bool | None = None):
    """bert, gpt2 (with task masks) or chinese."""
    folder = ASSETS / "tokenizers"
    if kind == "bert":
        vocabulary = (folder / "bert-large-uncased-vocab.txt").read_bytes()
        return WordPieceTokenizer(vocabulary, bert_commands(vocabulary, task_mask=bool(task_mask)))
    if kind == "gpt2":
        vocabulary, merges = ((folder / f"gpt2-{name}").read_bytes() for name in ("vocab.json", "merges.txt"))
        return ByteBPETokenizer(vocabulary, merges, gpt2_commands(vocabulary))
    model = (folder / "cog-pretrain.model").read_bytes()
    return ChineseSentencePieceTokenizer(model, chinese_commands(model))


def assert_equal(encoded, record: dict, *, pad: int, sep="sep", ids="ids", targets="target_ids", mask="loss_masks"):
    """`encoded`, padded, is the original's record; targets count where there is a loss."""
    padding = len(record[ids]) - len(encoded)
    assert padding >= 0, (len(encoded), len(record[ids]))
    positions = record.get("position_ids", record.get("position", record.get("position_id")))
    assert [*encoded.tokens, *[pad] * padding] == record[ids]
    assert [*encoded.position_ids, *[0] * padding] == positions[0]
    assert [*encoded.block_position_ids, *[0] * padding] == positions[1]
    assert encoded.prefix_length == record[sep]
    if mask is not None:
        assert [*target_weights(encoded), *[0] * padding] == record[mask]
        assert list(encoded.target_ids) == [t for t, w in zip(record[targets], record[mask], strict=True) if w]


def target_weights(encoded) -> list[int]:
    """1 for each token of a row whose output predicts a target, else 0."""
    return [int(column in encoded.target_index) for column in range(len(encoded))]


def rows_of_candidates(rows: Sequence[Encoded]) -> list[Encoded]:
    """A row for each candidate of an example, as the original has it, from rows that hold several."""
    result = {}
    for row in rows:
        for owner, number in enumerate(row.candidates):
            kept = [*range(row.prefix_length), *(i for i, s in enumerate(row.segment_ids) if s == owner + 1)]
            targets = [k for k, candidate in enumerate(row.target_candidate) if candidate == owner]
            lists = ("tokens", "position_ids", "block_position_ids", "segment_ids")
            result[number] = dataclasses.replace(
                row,
                **{name: [getattr(row, name)[i] for i in kept] for name in lists},
                target_index=tuple(kept.index(row.target_index[k]) for k in targets),
                target_ids=tuple(row.target_ids[k] for k in targets),
                target_candidate=(0,) * len(targets),
                candidates=(number,),
            )
    return [result[number] for number in sorted(result)]


class Words(Tokenizer):
    """A tokenizer of single words; one id a word, 100 + its number in order of appearance."""

    special = TOY
    num_tokens = pad_vocab_to_multiple_of = 1000

    def __init__(self):
        self.known = []

    def encode(self, text):
        self.known += [word for word in text.split() if word not in self.known]
        return [100 + self.known.index(word) for word in text.split()]

    def decode(self, ids, *, print_special=False):
        return " ".join(self.known[i - 100] for i in ids if i >= 100)

    def id_to_token(self, token_id):
        return self.known[token_id - 100]

    def fingerprint(self):
        return "words"

    def files(self):
        raise NotImplementedError

    def settings(self):
        raise NotImplementedError
