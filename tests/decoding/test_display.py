"""Probabilities of answers' tokens, and how filled text shows them."""

import html.parser
import math

import jax
import numpy as np
import pytest

import glm_jax
from glm_jax.decoding import DecodingError
from glm_jax.distributed.sharding import unbox
from glm_jax.interop import Pretrained
from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import GLM, init_params

PROMPTS = ["ba de [MASK] fi ba.", "go [sMASK] la [MASK].", "go ba de la [MASK] mo ne [MASK]."]


@pytest.mark.parametrize("order", ["left-to-right", "right-to-left"])
def test_the_probabilities_are_those_of_decoding(model, order):
    """Greedy answers take the first choice, and their tokens' log-probabilities sum to the score, but for the end's."""
    plain = glm_jax.fill(model, PROMPTS, max_new_tokens=4, order=order)
    # Tokens that no answer may contain are first choices too: here they are compared where they are not.
    found = glm_jax.fill(model, PROMPTS, max_new_tokens=4, order=order, top_k_alternatives=64, batch_size=2)
    for before, filled in zip(plain, found, strict=True):
        assert (filled.text, filled.scores) == (before.text, before.scores)
        assert before.tokens is None
        assert len(filled.tokens) == len(filled.answers)
        for answer, score, tokens in zip(filled.answers, filled.scores, filled.tokens, strict=True):
            total = sum(each.log_prob for each in tokens)
            if len(tokens) == 4:  # cut off: no end token is in the score
                assert total == pytest.approx(score, abs=1e-4)
            else:
                assert total >= score - 1e-4
            for each in tokens:
                values = [value for _, value in each.alternatives]
                assert values == sorted(values, reverse=True)
                assert len(values) == 64
                assert dict(each.alternatives).get(each.token, each.log_prob) == pytest.approx(each.log_prob, abs=1e-5)
            assert answer.strip() in filled.text


def test_samples_and_continuations_have_them_too(model):
    (filled,) = glm_jax.generate(
        model, "ba de fi", max_new_tokens=3, temperature=1.0, num_answers=2, top_k_alternatives=2
    )
    assert all(len(each.tokens[0][0].alternatives) == 2 for each in (filled, *filled.alternatives))
    (filled,) = glm_jax.generate(model, "ba de", unidirectional=True, max_new_tokens=3, top_k_alternatives=1)
    assert (
        sum(token.log_prob for token in filled.tokens[0]) == pytest.approx(filled.scores[0], abs=1e-4)
        or len(filled.tokens[0]) < 3
    )


class Spans(html.parser.HTMLParser):
    """The texts and titles of the marked parts, and the whole text."""

    def __init__(self):
        super().__init__()
        self.text, self.marked, self._title = "", [], None

    def handle_starttag(self, tag, attrs):
        self._title = dict(attrs).get("title")

    def handle_endtag(self, tag):
        self._title = None

    def handle_data(self, data):
        self.text += data
        if self._title:
            self.marked.append((data, self._title))


@pytest.mark.parametrize("top_k", [0, 3])
def test_a_notebook_shows_what_was_filled(model, top_k):
    for filled in glm_jax.fill(model, PROMPTS, max_new_tokens=4, top_k_alternatives=top_k):
        page = Spans()
        page.feed(filled._repr_html_())
        assert " ".join(page.text.split()) == " ".join(filled.text.split())
        shown = "".join(text for text, _ in page.marked).replace(" ", "")
        assert shown == "".join(filled.answers).replace(" ", "")
        if top_k:
            assert all(title.count(",") == 2 or title.count("\n") == 3 for _, title in page.marked)
        for answer, (start, stop) in zip(filled.answers, filled.spans, strict=True):
            assert filled.text[start:stop].strip() == answer.strip()


def test_printing_puts_answers_into_brackets(model):
    (filled,) = glm_jax.fill(model, PROMPTS[2], max_new_tokens=3, top_k_alternatives=2)
    first, *lines = str(filled).splitlines()
    for answer in filled.answers:
        assert f"[{answer.strip()}]" in first
    assert len(lines) == 2
    each = filled.tokens[0][0]
    assert f"{math.exp(each.log_prob):.2f}" in lines[0]
    (plain,) = glm_jax.fill(model, PROMPTS[0], max_new_tokens=3)
    assert "\n" not in str(plain)


def test_text_is_escaped(model):
    (filled,) = glm_jax.fill(model, "ba <b>&amp; [MASK] de", max_new_tokens=2, top_k_alternatives=1)
    assert "<b>" not in filled._repr_html_()


def test_more_alternatives_than_tokens_are_refused(model):
    with pytest.raises(DecodingError, match="top_k_alternatives=100000: the vocabulary has"):
        glm_jax.fill(model, PROMPTS[0], top_k_alternatives=100000)
    with pytest.raises(DecodingError, match="top_k_alternatives"):
        glm_jax.fill(model, PROMPTS[0], top_k_alternatives=-1)
    assert np.isfinite(glm_jax.fill(model, PROMPTS[0], top_k_alternatives=1)[0].tokens[0][0].log_prob)


def test_rows_that_the_tokenizer_does_not_have_are_never_written(model):
    """A model with sentinels has more rows than its tokenizer knows."""
    config = GLMConfig(model.tokenizer.vocab_size + 64, 2, 32, 2, 48, dtype="float32", init_std=0.3)
    larger = Pretrained(GLM(config), unbox(init_params(config, jax.random.key(0))), model.tokenizer)
    for seed in range(3):
        glm_jax.fill(larger, PROMPTS, max_new_tokens=20, temperature=3.0, seed=seed)
