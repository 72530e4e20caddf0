import numpy as np
import pytest

from glm_jax.tokenizers import SpecialTokens, Tokenizer

PIECES = ["[PAD]", "a.", "b", "c；", "…d", "e\n", ".com", "。", "x"]  # noqa: RUF001 (a Chinese mark)


class Words(Tokenizer):
    """The words of PIECES; every special token stands for the first of them, and eos for the last mark."""

    num_tokens, pad_vocab_to_multiple_of = len(PIECES), 4
    special = SpecialTokens(0, 7, 0, 0, 0, 0, 0, 0, 0)

    def encode(self, text):
        return [PIECES.index(word) for word in text.split()]

    def decode(self, ids, *, print_special=False):
        return " ".join(PIECES[i] for i in ids)

    def id_to_token(self, token_id):
        return PIECES[token_id]

    def fingerprint(self):
        return ""

    def files(self):
        raise NotImplementedError

    def settings(self):
        raise NotImplementedError


def test_sentence_ends_by_the_piece_but_never_a_special_token():
    ends = Words().sentence_ends()
    assert np.flatnonzero(ends).tolist() == [1, 3, 4, 5, 6]
    assert ends.shape == (12,)
    assert np.flatnonzero(Words().sentence_ends(".?!;:\n")).tolist() == [1, 5, 6]


@pytest.mark.parametrize(("multiple", "size"), [(1, 9), (4, 12), (9, 9), (128, 128)])
def test_padded_vocabulary(multiple, size):
    words = Words()
    words.pad_vocab_to_multiple_of = multiple
    assert words.vocab_size == size


def test_prompts_need_nothing_but_encode():
    assert Words().encode_prompt("b [MASK] x[sMASK]") == [2, 0, 8, 0]
