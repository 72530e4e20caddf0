"""Prompts in, text out: every task as filling blanks (paper, section 2.3)."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glm_jax.decoding.decoder import Completion, Decoder
from glm_jax.decoding.display import as_html, as_text
from glm_jax.decoding.options import DecodingError, SamplingParams, check_count
from glm_jax.decoding.probabilities import token_probabilities
from glm_jax.decoding.prompts import EncodedPrompt, blank_ids, check_room, encode_continuation, encode_prompt
from glm_jax.tokenizers.base import Tokenizer

_DEFAULT_NEW_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class AnswerToken:
    """A token of an answer.

    token: as the vocabulary writes it.
    text: what it adds to the text; "" where it is a part of a character that a later token completes.
    log_prob: its log-probability where it was written (natural logarithm).
    alternatives: the first choices in its place, as (token, log-probability), the likeliest first.
    """

    token: str
    text: str
    log_prob: float
    alternatives: tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class Filled:
    """A filled prompt. A notebook shows it in colours, `print` with its answers in brackets.

    text: the whole, answers in their places.
    answers, scores: of each blank, in the order of the text; a score is the sum of the log-probabilities of the
      answer's tokens and its end (natural logarithm); from beam search divided by length^length_penalty.
    alternatives: the other answers asked for, by falling score.
    spans: where the answers stand in `text`, as (start, stop).
    tokens: of each blank, with `top_k_alternatives`.
    """

    text: str
    answers: tuple[str, ...]
    scores: tuple[float, ...]
    alternatives: tuple["Filled", ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    tokens: tuple[tuple[AnswerToken, ...], ...] | None = None

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)


def fill(
    run: Any,
    prompts: str | Sequence[str],
    *,
    max_new_tokens: int | None = None,
    order: str | Sequence[int] = "left-to-right",
    num_answers: int = 1,
    seed: int | Sequence[int] = 0,
    batch_size: int = 16,
    forbidden: Sequence[int | str] = (),
    top_k_alternatives: int = 0,
    **sampling: Any,
) -> list[Filled]:
    """Fills every blank ([MASK], [sMASK], [gMASK]) of each prompt. Greedy unless `sampling` says otherwise.

    Args:
      run: what `glm_jax.from_pretrained` returns, or `Decoder(model, params, tokenizer)` of a model in memory. Either
        prepares the parameters once, however often it is used.
      prompts: one text or several.
      max_new_tokens: longest answer; None is 64, or what the model's positions allow.
      order: in which blanks are filled, each seeing the answers before it: "left-to-right", "right-to-left", "random",
        or numbers such as (2, 0, 1).
      num_answers: how many fillings of a whole prompt: samples, or hypotheses of a beam search. The first is the best,
        the others are its `alternatives`. With several blanks, samples fill all of them jointly; hypotheses differ in
        the last one.
      seed: for sampling: one for all, each prompt then draws by its index in `prompts`; or one for each.
      batch_size: prompts at once.
      forbidden: ids, or texts of one token, that no answer may contain. Command tokens and padding rows of the
        vocabulary never appear in answers.
      top_k_alternatives: for each token of an answer its probability and so many first choices, in `Filled.tokens`;
        costs one more pass over the filled text.
      sampling: fields of `glm_jax.decoding.SamplingParams`: temperature, top_k, top_p, num_beams, length_penalty,
        min_new_tokens, no_repeat_ngram.

    Raises PromptError for an empty prompt, one without a blank, with a mask that the model does not know, or longer
    than the model's positions; DecodingError for options that contradict each other or the device's memory; TypeError
    for a `run` that is neither.
    """
    decoder, tokenizer = _text_decoder(run, "fill")
    encoded = [encode_prompt(tokenizer, text, order) for text in _texts(prompts)]
    sampling_params = SamplingParams(
        **sampling, forbidden=suppressed_ids(tokenizer, decoder.config.vocab_size, forbidden)
    )
    return _complete(
        decoder, tokenizer, encoded, sampling_params,
        max_new_tokens=max_new_tokens, num_answers=num_answers, seed=seed, batch_size=batch_size,
        top_k_alternatives=top_k_alternatives,
    )  # fmt: skip


def generate(
    run: Any,
    texts: str | Sequence[str],
    *,
    unidirectional: bool = False,
    max_new_tokens: int | None = None,
    num_answers: int = 1,
    seed: int | Sequence[int] = 0,
    batch_size: int = 16,
    forbidden: Sequence[int | str] = (),
    top_k_alternatives: int = 0,
    **sampling: Any,
) -> list[Filled]:
    """Continues each text as the answer to a [gMASK] after it ([MASK] where the model has no [gMASK]).

    `unidirectional` treats the text as the beginning of the answer instead, read from left to right only; it may then
    be empty. Everything else as for `fill`.
    """
    decoder, tokenizer = _text_decoder(run, "generate")
    encoded = [encode_continuation(tokenizer, text, unidirectional=unidirectional) for text in _texts(texts)]
    sampling_params = SamplingParams(
        **sampling, forbidden=suppressed_ids(tokenizer, decoder.config.vocab_size, forbidden)
    )
    return _complete(
        decoder, tokenizer, encoded, sampling_params,
        max_new_tokens=max_new_tokens, num_answers=num_answers, seed=seed, batch_size=batch_size,
        top_k_alternatives=top_k_alternatives,
    )  # fmt: skip


def stream(
    run: Any,
    prompt: str,
    *,
    continuation: bool = False,
    unidirectional: bool = False,
    max_new_tokens: int | None = None,
    order: str | Sequence[int] = "left-to-right",
    seed: int = 0,
    forbidden: Sequence[int | str] = (),
    **sampling: Any,
) -> Iterator[tuple[int, str]]:
    """Fills one prompt, or continues a text where `continuation` is set: (blank, text chunk) as soon as it is known.

    `blank` counts from 0 in the order of the text; the chunks of a blank make up its answer. Arguments as for `fill`
    and `generate`; no beam search. Raises as `fill`, before the first chunk.
    """
    decoder, tokenizer = _text_decoder(run, "stream")
    if continuation:
        encoded = encode_continuation(tokenizer, prompt, unidirectional=unidirectional)
    else:
        encoded = encode_prompt(tokenizer, prompt, order)
    sampling_params = SamplingParams(
        **sampling, forbidden=suppressed_ids(tokenizer, decoder.config.vocab_size, forbidden)
    )
    if sampling_params.num_beams > 1:
        raise DecodingError(
            f"num_beams={sampling_params.num_beams}: a beam search knows its words only at the end; use fill()"
        )
    max_new_tokens = _answer_length(decoder, [encoded], max_new_tokens)
    key = _keys([seed], 1)[0]
    return _text_chunks(
        tokenizer, encoded, decoder.stream(encoded, sampling_params, max_new_tokens=max_new_tokens, key=key)
    )


def suppressed_ids(tokenizer: Tokenizer, vocab_size: int, more: Sequence[int | str] = ()) -> tuple[int, ...]:
    """Ids that mean nothing in a text, of a model with `vocab_size` rows; and `more`, ids or texts of one token.

    They are command tokens, sentinels and padding rows.
    """
    special = tokenizer.special
    commands = {special.pad, special.cls, special.start, special.block_mask, *blank_ids(special)}
    commands -= {special.end, special.eos}
    ids = commands | set(range(tokenizer.num_tokens, vocab_size))
    for item in more:
        tokens = [int(item)] if isinstance(item, (int, np.integer)) else tokenizer.encode(item)
        if len(tokens) != 1:
            raise DecodingError(f"forbidden {item!r} is {len(tokens)} tokens: only single tokens can be forbidden")
        ids.add(tokens[0])
    return tuple(sorted(ids))


def _text_decoder(run, function) -> tuple[Decoder, Tokenizer]:
    decoder = run if isinstance(run, Decoder) else getattr(run, "decoder", None)
    if not isinstance(decoder, Decoder):
        raise TypeError(
            f"{function}() takes what from_pretrained returns, or Decoder(model, params, tokenizer), first; "
            f"not {type(run).__name__}"
        )
    if decoder.tokenizer is None:
        raise DecodingError(f"{function}() needs a tokenizer: make the decoder with Decoder(model, params, tokenizer)")
    return decoder, decoder.tokenizer


def _texts(prompts) -> list[str]:
    several = isinstance(prompts, Iterable) and not isinstance(prompts, str)
    return list(prompts) if several else [prompts]


def _complete(
    decoder, tokenizer, prompts, sampling_params, *, max_new_tokens, num_answers, seed, batch_size, top_k_alternatives
) -> list[Filled]:
    check_count("num_answers", num_answers, 1)
    check_count("batch_size", batch_size, 1)
    check_count("top_k_alternatives", top_k_alternatives, 0)
    if top_k_alternatives and decoder.config.layout == "masked":
        raise DecodingError("a masked language model has no order of writing: leave out top_k_alternatives")
    if top_k_alternatives > decoder.config.vocab_size:
        raise DecodingError(
            f"top_k_alternatives={top_k_alternatives}: the vocabulary has {decoder.config.vocab_size} tokens"
        )
    if num_answers > sampling_params.num_beams > 1:
        raise DecodingError(
            f"num_answers={num_answers} of num_beams={sampling_params.num_beams}: a search keeps only its beams"
        )
    if num_answers > 1 and sampling_params.num_beams == 1 and not sampling_params.temperature:
        raise DecodingError(f"num_answers={num_answers} would all be equal: set temperature or num_beams")
    if not prompts:
        return []
    max_new_tokens = _answer_length(decoder, prompts, max_new_tokens)
    if sampling_params.min_new_tokens > max_new_tokens:
        shortest = sampling_params.min_new_tokens
        raise DecodingError(f"min_new_tokens={shortest} is above max_new_tokens={max_new_tokens}")
    keys = _keys(seed, len(prompts))
    completions = decoder.complete(
        prompts, sampling_params, max_new_tokens=max_new_tokens, num_answers=num_answers, keys=keys,
        batch_size=batch_size,
    )  # fmt: skip
    details: list[Any] = [[None] * len(answers) for answers in completions]
    if top_k_alternatives:
        flat = [(prompt, answer) for prompt, answers in zip(prompts, completions, strict=True) for answer in answers]
        found = iter(token_probabilities(decoder, *zip(*flat, strict=True), top_k_alternatives, batch_size))
        details = [[next(found) for _ in answers] for answers in completions]
    return [_filled(tokenizer, *each) for each in zip(prompts, completions, details, strict=True)]


def _answer_length(decoder, prompts, max_new_tokens) -> int:
    """`max_new_tokens`, or its default; checks that prompts and answers fit the model's positions."""
    if max_new_tokens is None:
        longest = max(len(prompt.answer_prefix) for prompt in prompts)
        if decoder.config.layout != "glm":
            longest = max(len(prompt.answer_prefix) + len(prompt.part_a) for prompt in prompts) - 1
        max_new_tokens = max(1, min(_DEFAULT_NEW_TOKENS, decoder.config.num_positions - 2 - longest))
    check_room(prompts, decoder.config, max_new_tokens)
    return max_new_tokens


def _keys(seed, count):
    if isinstance(seed, (int, np.integer)):
        key = jax.random.key(int(seed))
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    if len(seed) != count:
        raise DecodingError(f"{len(seed)} seeds for {count} prompts: give one for each, or one for all")
    return jnp.stack([jax.random.fold_in(jax.random.key(int(s)), 0) for s in seed])


def _filled(tokenizer, prompt: EncodedPrompt, completions: list[Completion], details) -> Filled:
    pairs = zip(completions, details, strict=True)
    best, *others = (_with_answers(tokenizer, prompt, completion, detail) for completion, detail in pairs)
    return dataclasses.replace(best, alternatives=tuple(others))


def _with_answers(tokenizer, prompt, completion, detail) -> Filled:
    """The prompt with the answers of one completion in the places of its blanks."""
    masks, answers, ids, spans = blank_ids(tokenizer.special), iter(completion.tokens), [], []
    rest, tokens = iter(detail or ()), []
    for token in prompt.part_a:
        if token in masks:
            begin = len(tokenizer.decode(ids))
            ids.extend(prompt.answer_prefix)
            answer = next(answers)
            if detail is not None:
                texts = _added_texts(tokenizer, ids, answer)
                tokens.append(tuple(_answer_token(tokenizer, text, *next(rest)) for text in texts))
            ids.extend(answer)
            spans.append((begin, len(tokenizer.decode(ids))))
        else:
            ids.append(token)
    texts = tuple(map(tokenizer.decode, completion.tokens))
    return Filled(
        tokenizer.decode(ids), texts, completion.scores, (), tuple(spans), None if detail is None else tuple(tokens)
    )


def _added_texts(tokenizer, ids, answer) -> list[str]:
    """What each token of an answer adds to the text of `ids`."""
    shown, texts = tokenizer.decode(ids), []
    for count in range(1, len(answer) + 1):
        text = tokenizer.decode([*ids, *answer[:count]])
        is_part = text.endswith("\ufffd") and count < len(answer)  # of a character
        texts.append("" if is_part else text[len(shown) :])
        shown = shown if is_part else text
    return texts


def _answer_token(tokenizer, text, token, log_prob, choices) -> AnswerToken:
    names = tuple((tokenizer.id_to_token(choice), value) for choice, value in choices)
    return AnswerToken(tokenizer.id_to_token(token), text, log_prob, names)


def _text_chunks(tokenizer, prompt, tokens) -> Iterator[tuple[int, str]]:
    """(blank in the order of the text, new text) of streamed tokens."""
    rank = {column: i for i, column in enumerate(sorted(prompt.blanks))}
    answer, shown, current = list(prompt.answer_prefix), tokenizer.decode(prompt.answer_prefix), 0
    for blank, token, _ in itertools.chain(tokens, [(None, None, None)]):
        if blank != current:  # the previous answer is complete: all of it is text now
            text = tokenizer.decode(answer)
            if len(text) > len(shown):
                yield rank[prompt.blanks[current]], text[len(shown) :]
            answer, shown, current = [], "", blank
        if token is not None:
            answer.append(token)
            text = tokenizer.decode(answer)
            # A character may need several tokens; until it is whole, it decodes to U+FFFD.
            if len(text) > len(shown) and not text.endswith("\ufffd"):
                yield rank[prompt.blanks[blank]], text[len(shown) :]
                shown = text
