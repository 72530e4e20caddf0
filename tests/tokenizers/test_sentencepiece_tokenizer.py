import json
import pickle
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_jax import tokenizers
from glm_jax.tokenizers import TokenizerError, sentencepiece_tokenizer
from glm_jax.tokenizers.special import SPECIAL_STRINGS

WORDS = "the quick brown fox jumps over a lazy dog while seven wizards brew potions; strange sounds echo"


def make_texts(count=200, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS.split(), k=30)).capitalize() + ".\nNext line!" for _ in range(count)]


@pytest.fixture(scope="module")
def folding():
    return sentencepiece_tokenizer.train(make_texts(), vocab_size=330)


@pytest.fixture(scope="module")
def exact():
    return sentencepiece_tokenizer.train(make_texts(), vocab_size=330, normalization="identity")


def test_special_tokens_are_nine_distinct_ids(folding):
    assert len(set(folding.special_ids())) == 9
    assert folding.id_to_token(folding.special.generation_mask) == "[gMASK]"
    assert folding.id_to_token(folding.special.start) == "<|startofpiece|>"


def test_vocabulary_is_padded(folding):
    assert (folding.num_tokens, folding.vocab_size) == (330, 384)
    assert folding.id_to_token(383) == "[UNUSED383]"
    assert folding.decode([383]) == ""


def test_training_is_deterministic(folding):
    again = sentencepiece_tokenizer.train(iter(make_texts()), vocab_size=330)
    assert again.fingerprint() == folding.fingerprint()
    other = sentencepiece_tokenizer.train(make_texts(seed=1), vocab_size=330)
    assert other.fingerprint() != folding.fingerprint()


def test_special_names_in_text_stay_text(folding, exact):
    text = "".join(SPECIAL_STRINGS.values()) + "[UNK]"
    for tokenizer in (folding, exact):
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.special_ids())
        assert tokenizer.decode(ids) == text


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_identity_normalization_round_trips(exact, text):
    assert exact.decode(exact.encode(text)) == text


def test_prompt_masks_become_ids_and_swallow_the_space_before(folding):
    special = folding.special
    whole, dog = folding.encode("the quick dog"), folding.encode("dog")
    ids = folding.encode_prompt("the [MASK] dog")
    assert ids == [*folding.encode("the"), special.mask, *dog]
    assert ids[-len(dog) :] == whole[-len(dog) :]  # as in running text
    assert folding.encode_prompt("[sMASK] [gMASK]") == [special.sentence_mask, special.generation_mask]
    inside = folding.encode_prompt("[MASK]izards")
    assert not folding.id_to_token(inside[1]).startswith("▁")


@pytest.mark.parametrize("prompt", ["the [MASK] fox", "[gMASK]", "a[MASK]x  y [sMASK]. dog", "dog\n[MASK]\nfox [MASK]"])
def test_printed_prompts_read_back_as_the_same_ids(folding, exact, prompt):
    for tokenizer in (folding, exact):
        ids = tokenizer.encode_prompt(prompt)
        assert tokenizer.encode_prompt(tokenizer.decode(ids, print_special=True)) == ids


def test_decoding_leaves_special_tokens_out_or_prints_them(folding):
    special = folding.special
    ids = [special.cls, *folding.encode("the fox"), special.eos, special.pad]
    assert folding.decode(ids) == "the fox"
    assert folding.decode(np.array(ids), print_special=True) == "[CLS] the fox<|endoftext|>[PAD]"
    with pytest.raises(TokenizerError, match=r"outside the vocabulary 0\.\.383"):
        folding.decode([384])


def test_sentence_ends(folding, exact):
    ends = folding.sentence_ends()
    assert ends.shape == (folding.vocab_size,)
    assert ends[folding.encode("dog.")[-1]]
    assert ends[folding.encode("dog;")[-1]]
    assert not ends[folding.encode("dog")].any()
    assert not ends[list(folding.special_ids())].any()
    assert exact.sentence_ends()[exact.encode("a\n")[-1]]
    assert folding.sentence_ends()[10 + ord("?")]  # the byte <0x3F> is a question mark
    assert folding.id_to_token(10 + ord("?")) == "<0x3F>"


def test_save_and_load(folding, tmp_path):
    folding.save(tmp_path / "new")
    loaded = tokenizers.load(tmp_path / "new")
    text = "the quick Unseen ☃"
    assert loaded.encode(text) == folding.encode(text)
    assert (loaded.fingerprint(), loaded.special) == (folding.fingerprint(), folding.special)
    assert pickle.loads(pickle.dumps(folding)).encode(text) == folding.encode(text)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["sentencepiece.model", "tokenizer.json"]
    settings = json.loads((tmp_path / "new" / "tokenizer.json").read_text())
    assert settings == {"kind": "sentencepiece", "vocab_multiple": 128, "special": vars(folding.special)}


def test_incomplete_or_unknown_saved_tokenizer(folding, tmp_path):
    with pytest.raises(TokenizerError, match="no tokenizer in"):
        tokenizers.load(tmp_path)
    folding.save(tmp_path)
    (tmp_path / "sentencepiece.model").unlink()
    with pytest.raises(TokenizerError, match="incomplete"):
        tokenizers.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"kind": "morse"}))
    with pytest.raises(TokenizerError, match=r"'morse' is not one of .*sentencepiece"):
        tokenizers.load(tmp_path)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_vocabulary_size_must_fit_the_corpus(model_type):
    def train(size):
        return sentencepiece_tokenizer.train(make_texts(20), vocab_size=size, model_type=model_type)

    with pytest.raises(TokenizerError, match="vocab_size 5000 is more than this corpus supports: at most") as error:
        train(5000)
    most = int(str(error.value).split()[-1])
    assert train(most).num_tokens == most
    with pytest.raises(TokenizerError, match=r"vocab_size 100 has no room .* at least"):
        train(100)


def test_training_errors():
    with pytest.raises(TokenizerError, match="no text"):
        sentencepiece_tokenizer.train(["", " \n "], vocab_size=300)
    with pytest.raises(TokenizerError, match=r"normalization 'nfc' is not one of nmt_nfkc"):
        sentencepiece_tokenizer.train(["a"], vocab_size=300, normalization="nfc")
    with pytest.raises(TokenizerError, match="model_type 'word'"):
        sentencepiece_tokenizer.train(["a"], vocab_size=300, model_type="word")


def test_a_model_without_the_special_tokens_is_refused():
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(make_texts()), model_writer=model, vocab_size=60, minloglevel=2
    )
    with pytest.raises(TokenizerError, match=r"has no \[PAD\]"):
        sentencepiece_tokenizer.SentencePieceTokenizer(model.getvalue())


def test_long_lines_take_part_in_the_training():
    line = " ".join(make_texts(8000))  # one line of more than a megabyte, which SentencePiece alone would skip
    tokenizer = sentencepiece_tokenizer.train([line.replace("\n", " ")], vocab_size=330)
    assert "▁wizards" in [tokenizer.id_to_token(i) for i in range(330)]


def test_sampling_keeps_a_uniform_share():
    kept = [sentencepiece_tokenizer._sample(iter(map(str, range(n, n + 1000))), 100) for n in range(200)]
    positions = np.array([[int(chunk) - n for chunk in chunks] for n, chunks in enumerate(kept)])
    assert positions.shape == (200, 100)
    assert len(set(positions[0])) == 100
    assert 440 < positions.mean() < 560
