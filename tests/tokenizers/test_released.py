"""Every released tokenizer against the original's ids and decodings."""

import json
import os
import pathlib
import pickle

import pytest

import glm_jax.tokenizers
from glm_jax.interop import hub_tokenizer
from glm_jax.tokenizers import TokenizerError
from glm_jax.tokenizers.base import SENTENCE_MARKS
from glm_jax.tokenizers.byte_bpe import ByteBPETokenizer, gpt2_commands, roberta_commands
from glm_jax.tokenizers.chinese_sentencepiece import ChineseSentencePieceTokenizer, chinese_commands
from glm_jax.tokenizers.released import Command
from glm_jax.tokenizers.wordpiece import WordPieceTokenizer, bert_commands
from tests.helpers.paths import ROOT

ASSETS = pathlib.Path(os.environ.get("GLM_JAX_ASSETS", ROOT.parent / "shared")) / "tokenizers"
GOLDEN = json.loads((ROOT / "tests/golden/tokenizers.json").read_text())

needs_vocabularies = pytest.mark.skipif(
    not ASSETS.is_dir(),
    reason=f"the released vocabularies are not at {ASSETS}; set GLM_JAX_ASSETS to their folder's parent",
)


def build(variant):
    kind, *flags = variant.split(", ")
    masks = {"task_mask": "task_mask" in flags, "block_mask": "decoder_mask" in flags}
    if kind == "bert":
        vocabulary = (ASSETS / "bert-large-uncased-vocab.txt").read_bytes()
        return WordPieceTokenizer(vocabulary, bert_commands(vocabulary, **masks))
    if kind == "chinese":
        model = (ASSETS / "cog-pretrain.model").read_bytes()
        commands = chinese_commands(model, fix_command_token="fix" in flags, **masks)
        return ChineseSentencePieceTokenizer(model, commands)
    vocabulary, merges = ((ASSETS / f"{kind}-{name}").read_bytes() for name in ("vocab.json", "merges.txt"))
    if kind == "roberta":
        return ByteBPETokenizer(vocabulary, merges, roberta_commands(vocabulary, **masks))
    return ByteBPETokenizer(vocabulary, merges, gpt2_commands(vocabulary, block="block" in flags, **masks))


@needs_vocabularies
@pytest.mark.parametrize("variant", GOLDEN)
def test_golden(variant):
    golden, tokenizer = GOLDEN[variant], build(variant)
    assert tokenizer.num_tokens == golden["num_tokens"]
    assert tokenizer.vocab_size == golden["padded_128"]
    assert [[c.name, c.text, c.id, c.lstrip, False] for c in tokenizer.commands] == golden["commands"]
    for row in golden["rows"]:
        assert tokenizer.encode_commands(row["text"]) == row["ids"], row["text"]
        assert tokenizer.decode(row["ids"], print_special=True) == row["decoded"], row["text"]


@needs_vocabularies
@pytest.mark.parametrize(
    "variant", ["bert, block, task_mask", "roberta, block", "gpt2, block, task_mask", "chinese, block, task_mask, fix"]
)
def test_prompts_and_plain_text(variant):
    """Mask words are read in prompts only; what lies between them is encoded as the original does."""
    tokenizer = build(variant)
    others = [command.text for command in tokenizer.commands if command.name != "MASK"] + ["[gMASK]", "[sMASK]"]
    for row in GOLDEN[variant]["rows"]:
        if not any(word in row["text"] for word in others):
            assert tokenizer.encode_prompt(row["text"]) == row["ids"], row["text"]
    assert tokenizer.special.mask not in tokenizer.encode("a [MASK] b")
    ids = tokenizer.encode_prompt("Ng is [MASK] here.")
    assert tokenizer.special.mask in ids
    assert "[MASK]" in tokenizer.decode(ids, print_special=True)
    assert "[MASK]" not in tokenizer.decode(ids)


@needs_vocabularies
@pytest.mark.parametrize(
    ("variant", "expected"),
    [("bert, block", (0, 0, 101, 103, 103, 103, 30522, 30523, 30524)),
     ("roberta, block", (2, 2, 0, 50264, 50264, 50264, 50265, 50266, 50267)),
     ("gpt2, block, task_mask, decoder_mask", (50256, 50256, 50259, 50260, 50264, 50263, 50257, 50258, 50265)),
     ("chinese, block, task_mask, fix", (50000, 50000, 50002, 50003, 50008, 50009, 50006, 50007, 50010)),
     ("chinese, block, task_mask", (50000, 50000, 50002, 50003, 50008, 50007, 50006, 50007, 50009))],
)  # fmt: skip
def test_special_tokens(variant, expected):
    """Without --task-mask every blank is [MASK]; the last pair is the collision of 10b-chinese."""
    assert build(variant).special_ids() == expected


@needs_vocabularies
def test_legacy_switch(tmp_path):
    """A bare vocabulary, as beside the original's weights; a hub folder states its ids, which stand."""
    (tmp_path / "cog-pretrain.model").write_bytes((ASSETS / "cog-pretrain.model").read_bytes())
    assert hub_tokenizer.read(tmp_path).special.generation_mask == 50009
    legacy = hub_tokenizer.read(tmp_path, fix_command_token=False)
    assert legacy.special.generation_mask == legacy.special.end == 50007
    (tmp_path / "added_tokens.json").write_text(json.dumps(HUB["glm-10b-chinese"][1]))
    assert hub_tokenizer.read(tmp_path, fix_command_token=False).special.generation_mask == 50009


@needs_vocabularies
def test_names_of_ids():
    tokenizer = build("chinese, block, task_mask")
    assert tokenizer.id_to_token(50007) == "[gMASK]"
    assert tokenizer.vocabulary_token(50007) is None
    assert tokenizer.id_to_token(50047) == "[UNUSED50047]"
    roberta = build("roberta, block")
    assert (roberta.id_to_token(50264), roberta.vocabulary_token(50264)) == ("[MASK]", "<mask>")
    for bad in (-1, 50048):
        with pytest.raises(TokenizerError, match=str(bad)):
            tokenizer.decode([bad])


@needs_vocabularies
def test_no_tokenizer_of_glm_without_its_tokens():
    with pytest.raises(TokenizerError, match="ENC, MASK, sop, eop"):
        _ = build("gpt2, no block").special


@needs_vocabularies
def test_sentence_ends_are_ascii_marks_in_byte_vocabularies():
    """The original looks at the vocabulary's strings, in which byte BPE spells a newline as another character."""
    tokenizer = build("gpt2, block, task_mask")
    texts = [tokenizer.mark_text(tokenizer.encode_continuation("a" + text)[-1]) for text in (".", "?!", "…", "\n")]
    assert [any(mark in text for mark in SENTENCE_MARKS) for text in texts] == [True, True, False, False]


@needs_vocabularies
@pytest.mark.parametrize("variant", ["bert, block", "roberta, block", "chinese, block, task_mask"])
def test_save_load_pickle(variant, tmp_path):
    tokenizer = build(variant)
    tokenizer.save(tmp_path)
    copies = [glm_jax.tokenizers.load(tmp_path), pickle.loads(pickle.dumps(tokenizer))]
    for copy in copies:
        assert type(copy) is type(tokenizer)
        assert copy.fingerprint() == tokenizer.fingerprint()
        assert copy.commands == tokenizer.commands
        assert copy.encode("Hello world!") == tokenizer.encode("Hello world!")
    name = sorted(tokenizer.files())[0]
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError):
        glm_jax.tokenizers.load(tmp_path)


@needs_vocabularies
def test_fingerprints_differ():
    prints = [build(variant).fingerprint() for variant in GOLDEN]
    assert len(set(prints)) == len(prints)


HUB = {
    "glm-10b": ("gpt2", {"<|startofpiece|>": 50257, "<|endofpiece|>": 50258, "[CLS]": 50259, "[MASK]": 50260,
                         "[SEP]": 50261, "[UNUSED]": 50262, "[gMASK]": 50263, "[sMASK]": 50264}),
    "glm-roberta-large": ("roberta", {"<|startofpiece|>": 50265, "<|endofpiece|>": 50266, "[MASK]": 50267}),
    "glm-10b-chinese": ("chinese", {"<|endoftext|>": 50000, "[SEP]": 50001, "[CLS]": 50002, "[MASK]": 50003,
                                    "[UNUSED1]": 50004, "[UNUSED2]": 50005, "<|startofpiece|>": 50006,
                                    "<|endofpiece|>": 50007, "[sMASK]": 50008, "[gMASK]": 50009}),
    "glm-large": ("bert", {"<|startofpiece|>": 30522, "<|endofpiece|>": 30523}),
}  # fmt: skip
# pad, eos, cls, mask, sentence mask, generation mask, start, end
HUB_IDS = {
    "glm-10b": (50256, 50256, 50259, 50260, 50264, 50263, 50257, 50258),
    "glm-roberta-large": (2, 2, 0, 50267, 50267, 50267, 50265, 50266),
    "glm-10b-chinese": (50000, 50000, 50002, 50003, 50008, 50009, 50006, 50007),
    "glm-large": (0, 0, 101, 103, 103, 103, 30522, 30523),
}


@needs_vocabularies
@pytest.mark.parametrize("name", HUB)
def test_tokenizers_of_the_hub(name, tmp_path):
    """The files that the hub's folders hold: a vocabulary and added_tokens.json. Read, written, read again."""
    kind, added = HUB[name]
    files = {"bert": [("bert-large-uncased-vocab.txt", "vocab.txt")], "chinese": [("cog-pretrain.model",) * 2]}
    byte_files = [(f"{kind}-{file}", file) for file in ("vocab.json", "merges.txt")]
    for source, target in files.get(kind, byte_files):
        (tmp_path / target).write_bytes((ASSETS / source).read_bytes())
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    tokenizer = hub_tokenizer.read(tmp_path)
    assert tokenizer.special_ids()[:8] == HUB_IDS[name]
    assert {c.text: c.id for c in tokenizer.commands if c.id >= tokenizer.size} == added
    same, rows = hub_tokenizer.for_hub(tokenizer)
    assert rows == {}
    (tmp_path / "again").mkdir()
    for file, content in hub_tokenizer.files(same).items():
        (tmp_path / "again" / file).write_bytes(content)
    again = hub_tokenizer.read(tmp_path / "again")
    assert again.fingerprint() == tokenizer.fingerprint()
    assert json.loads((tmp_path / "again/added_tokens.json").read_text()) == added


@needs_vocabularies
@pytest.mark.parametrize(
    ("variant", "moved", "mask"),
    [("chinese, block, task_mask", {50009: 50007}, "generation_mask"), ("roberta, block", {50267: 50264}, "mask"),
     ("chinese, block, task_mask, fix", {}, "mask"), ("gpt2, block, task_mask", {}, "mask"),
     ("bert, block", {}, "mask")],
)  # fmt: skip
def test_rows_that_the_hub_gives_other_ids(variant, moved, mask):
    """10b-chinese and roberta-large: what the original's conversion to the hub copies."""
    tokenizer, rows = hub_tokenizer.for_hub(build(variant))
    assert {new: old for new, (old, _) in rows.items()} == moved
    if moved:
        assert getattr(tokenizer.special, mask) == next(iter(moved))


@pytest.mark.parametrize(
    ("commands", "match"),
    [([Command("a", "[A]", -1)], r"\[A\] cannot"), ([Command("a", "[A]", 1), Command("b", "[A]", 2)], r"\[A\] cannot")],
)
def test_impossible_command_tokens(commands, match):
    vocabulary = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na"
    with pytest.raises(TokenizerError, match=match):
        WordPieceTokenizer(vocabulary, commands)
    with pytest.raises(TokenizerError, match="pad_vocab_to_multiple_of"):
        WordPieceTokenizer(vocabulary, [], 0)


@pytest.mark.parametrize(
    ("vocabulary", "match"),
    [(b"a\nb", r"no \[PAD\]"), (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na", "'a' twice"), (b"\xff", "not UTF-8")],
)
def test_damaged_wordpiece(vocabulary, match):
    with pytest.raises(TokenizerError, match=match):
        bert_commands(vocabulary)


@pytest.mark.parametrize(
    ("vocabulary", "merges", "match"),
    [(b"{", b"", "no JSON"), (b"[]", b"", "does not map"), (b'{"a": 1}', b"", "not 0 to 0"),
     (b'{"a": 0}', b"#v\na b", "merges do not belong"), (b'{"a": 0}', b"#v\n\xff", "merges do not belong")],
)  # fmt: skip
def test_damaged_byte_bpe(vocabulary, merges, match):
    with pytest.raises(TokenizerError, match=match):
        ByteBPETokenizer(vocabulary, merges, [])
    for commands in (gpt2_commands, roberta_commands):
        with pytest.raises(TokenizerError):
            commands(b'{"a": 0}')


def test_damaged_sentencepiece():
    with pytest.raises(TokenizerError, match="damaged"):
        chinese_commands(b"junk")
