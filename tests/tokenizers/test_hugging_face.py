"""Tokenizers of the Hugging Face libraries: trained here, wrapped, saved, and given GLM's special tokens."""

import json
import pickle
import types

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from glm_jax import tokenizers
from glm_jax.tokenizers import SpecialTokens, TokenizerError, from_hf
from glm_jax.tokenizers.special import SPECIAL_STRINGS

TEXT = "The quick brown fox jumps over a lazy dog; seven wizards brew potions!\n Größe 狐。"


def train():
    """A byte-level BPE whose vocabulary has an end of its own, and [MASK]."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["</s>", "[MASK]"], initial_alphabet=alphabet)
    library.train_from_iterator([TEXT] * 20, trainer)
    return library


@pytest.fixture(scope="module")
def library():
    return train()


@pytest.fixture(scope="module")
def wrapped(library):
    return from_hf(library, {"eos": "</s>", "pad": "</s>"})


def test_special_tokens_are_taken_or_added_at_the_end(library, wrapped):
    special, size = wrapped.special, library.get_vocab_size()
    assert (special.eos, special.pad, special.mask) == (0, 0, library.token_to_id("[MASK]"))
    added = [
        special.cls,
        special.sentence_mask,
        special.generation_mask,
        special.start,
        special.end,
        special.block_mask,
    ]
    assert added == list(range(size, size + 6))
    assert [wrapped.id_to_token(i) for i in added[:2]] == ["[CLS]", "[sMASK]"]
    assert (wrapped.num_tokens, wrapped.vocab_size % 128) == (size + 6, 0)
    assert wrapped.id_to_token(wrapped.vocab_size - 1) == f"[UNUSED{wrapped.vocab_size - 1}]"
    assert library.get_vocab_size() == size  # the original stays as it was


def test_text_and_back(wrapped, library):
    assert wrapped.encode(TEXT) == library.encode(TEXT).ids
    assert wrapped.decode(wrapped.encode(TEXT)) == TEXT
    assert wrapped.decode(np.array([wrapped.special.cls, *wrapped.encode("fox"), wrapped.num_tokens])) == "fox"


def test_names_of_special_tokens_in_a_text_stay_text(wrapped):
    text = "".join(SPECIAL_STRINGS.values()) + "</s>"
    ids = wrapped.encode(text)
    assert not set(ids) & set(wrapped.special_ids())
    assert wrapped.decode(ids) == text


def test_special_tokens_that_the_model_itself_would_produce_are_left_out():
    words = {"[UNK]": 0, "the": 1, "[MASK]": 2, "fox": 3}
    library = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = from_hf(library)
    assert wrapped.special.mask == 2
    assert wrapped.encode("the [MASK] fox") == [1, 3]
    assert wrapped.encode_prompt("the [MASK] fox") == [1, 2, 3]


def test_prompts_and_their_printed_form(wrapped):
    special = wrapped.special
    ids = wrapped.encode_prompt("The quick [MASK] fox [gMASK]")
    expected = [*wrapped.encode("The quick"), special.mask, *wrapped.encode(" fox"), special.generation_mask]
    assert ids == expected
    assert wrapped.decode(ids, print_special=True) == "The quick [MASK] fox [gMASK]"
    assert wrapped.decode(ids) == "The quick fox"


def test_sentence_ends_are_found_in_the_text_of_a_token(wrapped):
    ends = wrapped.sentence_ends()
    assert ends.shape == (wrapped.vocab_size,)
    for text, expected in ((";", True), ("!", True), ("\n", True), ("x", False)):
        assert ends[wrapped.encode(text)[-1]] == expected, text
    assert not ends[list(wrapped.special_ids())].any()


def test_ids_for_special_tokens(library):
    ids = SpecialTokens(*range(5, 14))
    wrapped = from_hf(library, ids, pad_vocab_to_multiple_of=64)
    assert wrapped.special == ids
    assert wrapped.num_tokens == library.get_vocab_size()
    assert wrapped.vocab_size % 64 == 0
    assert from_hf(library, {"mask": 7}).special.mask == 7


def test_save_load_pickle(wrapped, tmp_path):
    wrapped.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf_tokenizer.json", "tokenizer.json"]
    for copy in (tokenizers.load(tmp_path), pickle.loads(pickle.dumps(wrapped))):
        assert copy.encode(TEXT) == wrapped.encode(TEXT)
        assert (copy.special, copy.vocab_size) == (wrapped.special, wrapped.vocab_size)
        assert copy.fingerprint() == wrapped.fingerprint()
    assert from_hf(train(), pad_vocab_to_multiple_of=64).fingerprint() != wrapped.fingerprint()
    saved = json.loads((tmp_path / "hf_tokenizer.json").read_text())
    del saved["model"]
    (tmp_path / "hf_tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(TokenizerError, match="is damaged"):
        tokenizers.load(tmp_path)


def test_a_fast_tokenizer_of_transformers_is_unwrapped_and_its_truncation_dropped(wrapped):
    backend = train()
    backend.enable_truncation(3)
    backend.enable_padding(length=100)
    fast = types.SimpleNamespace(backend_tokenizer=backend)
    assert from_hf(fast, {"eos": "</s>"}).encode(TEXT) == wrapped.encode(TEXT)
    assert backend.truncation["max_length"] == 3


@pytest.mark.parametrize(
    ("special", "says"),
    [
        ({"masks": "[MASK]"}, "unknown special token 'masks'; nearest: mask"),
        ({"mask": "[MAKS]"}, r"special token mask: the vocabulary has no '\[MAKS\]'; nearest: \[MASK\]"),
        ({"mask": 10**6}, "special token mask: the vocabulary has no id 1000000"),
        ({"mask": -1}, "has no id -1"),
        ({"mask": True}, "special token mask is True: give a token string or an id"),
        ({"start": "</s>", "end": "</s>"}, "mask, start, end, eos need different ids"),
        (SpecialTokens(*[3] * 9), "need different ids"),
    ],
)
def test_special_tokens_that_cannot_be(library, special, says):
    with pytest.raises(TokenizerError, match=says):
        from_hf(library, special)


def test_other_objects_are_refused(library):
    with pytest.raises(TokenizerError, match=r"takes a tokenizers\.Tokenizer or a fast tokenizer.*not dict"):
        from_hf({})
    with pytest.raises(TokenizerError, match="pad_vocab_to_multiple_of must be a whole number of at least 1, not 0"):
        from_hf(library, pad_vocab_to_multiple_of=0)
