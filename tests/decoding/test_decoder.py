"""Writing answers: what must not change an answer, and what the answers must be, by the whole forward."""

import dataclasses
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.decoding import Decoder, DecodingError, SamplingParams, steps
from glm_jax.decoding import decoder as decoder_lib
from glm_jax.decoding.decoder import bucket
from glm_jax.decoding.prompts import EncodedPrompt
from glm_jax.distributed.sharding import unbox
from glm_jax.model.attention import PORTABLE
from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import GLM, init_params
from tests.helpers.compiler_flags import fake_devices
from tests.helpers.decoding_models import CONFIG, SPECIAL, full, keys, params, prompts
from tests.helpers.paths import ROOT

STOPS = {SPECIAL.end, SPECIAL.eos}


@pytest.fixture(scope="module")
def decoder():
    return Decoder(GLM(CONFIG), params("H"), SPECIAL)


def logits_by_full_forward(name, prompt, written, config=CONFIG):
    """Logits after Part A and the answers `written` [(column, fed tokens)], by one forward over everything."""
    n = len(prompt.part_a)
    tokens, positions, places = list(prompt.part_a), list(range(n)), [0] * n
    for column, fed in written:
        tokens += fed
        positions += [column] * len(fed)
        places += range(1, len(fed) + 1)
    width = bucket(len(tokens))
    padded = (np.array([row + [0] * (width - len(row))], np.int32) for row in (tokens, positions, places))
    weights = params(name) if isinstance(name, str) else name
    return np.asarray(full(config, weights, *padded, np.array([n], np.int32)))[0, : len(tokens)]


def greedy_by_full_forward(name, prompt, max_new_tokens):
    """Greedy answers and scores in the order of filling."""
    done, answers, scores = [], [], []
    for column in prompt.blanks:
        fed, score = [SPECIAL.start, *prompt.answer_prefix] if not done else [SPECIAL.start], 0.0
        given = len(fed)
        while len(fed) - given < max_new_tokens:
            last = jax.nn.log_softmax(logits_by_full_forward(name, prompt, [*done, (column, fed)])[-1])
            token = int(last.argmax())
            score += float(last[token])
            if token in STOPS:
                break
            fed.append(token)
        done.append((column, fed))
        answers.append(fed[given:])
        scores.append(score)
    return answers, scores


@pytest.mark.parametrize("backend", PORTABLE)
def test_cached_logits_are_those_of_the_whole_forward(backend):
    config = dataclasses.replace(CONFIG, attention_backend=backend)
    prepared = steps.prepare(params("A"), config=config, unrolled=True)
    prompt, count = prompts(1, lengths=(9, 10))[0], 6
    tokens = np.full((1, 32), 99, np.int32)
    n = len(prompt.part_a)
    tokens[0, :n] = prompt.part_a
    positions = np.arange(32, dtype=np.int32)[None]
    length = np.array([n], np.int32)
    context = decoder_lib.encode(prepared, tokens, positions, 0 * positions, length, length, model=GLM(config))
    cache = steps.empty_answers(context, 1, count)
    fed = [SPECIAL.start, 50, 51, 52, 53, 54]
    expected = logits_by_full_forward("A", prompt, [(prompt.blanks[0], fed)], config)[n:]
    for step, token in enumerate(fed):
        one = jnp.ones((1, 1), jnp.int32)
        found, cache = steps.forward(
            prepared, context, cache, jnp.int32(step), token * one, prompt.blanks[0] * one, (step + 1) * one,
            model=GLM(config),
        )  # fmt: skip
        np.testing.assert_allclose(found[0, 0], expected[step], atol=1e-5)


@pytest.mark.parametrize(
    ("order", "begun"), [((0, 1, 2), ()), ((2, 0, 1), ()), ((1,), (60, 61))], ids=["in order", "any order", "begun"]
)
def test_answers_are_the_greedy_ones(decoder, order, begun):
    """Later blanks see the earlier answers to their last token, also where an answer was cut."""
    (prompt,) = prompts(1, seed=3, lengths=(12, 13), blanks=3)
    prompt = EncodedPrompt(prompt.part_a, tuple(prompt.blanks[i] for i in order), begun)
    ((found,),) = decoder.complete([prompt], SamplingParams(), max_new_tokens=4, keys=keys(1))
    answers, scores = greedy_by_full_forward("H", prompt, 4)
    rank = np.argsort(prompt.blanks)
    assert [list(t) for t in found.tokens] == [answers[i] for i in rank]
    np.testing.assert_allclose(found.scores, [scores[i] for i in rank], atol=1e-4)


@pytest.mark.thorough
def test_an_answer_does_not_depend_on_its_batch(decoder):
    """Neighbours, place, and rows that end early: bitwise. Another batch size: the same tokens, scores to 1e-5."""
    chosen, k = prompts(5, seed=1, blanks=2), keys(5)
    sampling_params = SamplingParams(temperature=0.8, top_k=20, top_p=0.9)
    options = {"max_new_tokens": 5, "num_answers": 2}
    together = decoder.complete(chosen, sampling_params, keys=k, batch_size=8, **options)
    backwards = decoder.complete(chosen[::-1], sampling_params, keys=k[::-1], batch_size=8, **options)[::-1]
    assert together == backwards
    others = decoder.complete(
        [chosen[0], *prompts(4, seed=9, blanks=2)], sampling_params, keys=k, batch_size=8, **options
    )
    assert others[0] == together[0]
    for i, prompt in enumerate(chosen):
        (alone,) = decoder.complete([prompt], sampling_params, keys=k[i : i + 1], **options)
        for a, b in zip(alone, together[i], strict=True):
            assert a.tokens == b.tokens
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)


@pytest.mark.thorough
def test_padding_does_not_change_an_answer():
    """The same prompts in a context of 32 and of 64 columns."""
    chosen = prompts(2, seed=2)
    prepared = steps.prepare(params("A"), config=CONFIG, unrolled=True)
    found = []
    for width in (32, 64):
        tokens = np.full((2, width), 77, np.int32)
        lengths = np.array([len(p.part_a) for p in chosen], np.int32)
        for row, prompt in enumerate(chosen):
            tokens[row, : lengths[row]] = prompt.part_a
        positions = np.broadcast_to(np.arange(width, dtype=np.int32) % 64, (2, width))
        context = decoder_lib.encode(prepared, tokens, positions, 0 * positions, lengths, lengths, model=GLM(CONFIG))
        cache = steps.empty_answers(context, 1, 3)
        one = jnp.ones((2, 1), jnp.int32)
        logits, _ = steps.forward(prepared, context, cache, jnp.int32(0), 5 * one, one, one, model=GLM(CONFIG))
        found.append(logits)
    np.testing.assert_allclose(*found, atol=1e-5)


def test_the_stream_is_what_is_written_at_once(decoder):
    (prompt,) = prompts(1, seed=3, lengths=(12, 13), blanks=2)
    sampling_params = SamplingParams(temperature=1.0)
    ((whole,),) = decoder.complete([prompt], sampling_params, max_new_tokens=6, keys=keys(1))
    streamed, scores = [[], []], [0.0, 0.0]
    for blank, token, score in decoder.stream(prompt, sampling_params, max_new_tokens=6, key=keys(1)[0]):
        scores[blank] += score
        if token is not None:
            streamed[blank].append(token)
    assert tuple(map(tuple, streamed)) == whole.tokens
    np.testing.assert_allclose(scores, whole.scores, atol=1e-5)


@pytest.fixture(scope="module")
def tiny():
    """A model of eight tokens that is sure of little: start 5, end 6, mask 2."""
    config = GLMConfig(8, 2, 16, 2, 16, dtype="float32", init_std=0.4)
    return config, unbox(init_params(config, jax.random.key(2)))


def all_continuations(config, weights, prompt, longest):
    """Every answer of at most `longest` tokens with its log-probability; cut ones have no end."""
    found = {}
    for length in range(longest + 1):
        for tokens in itertools.product([t for t in range(8) if t not in STOPS], repeat=length):
            logits = logits_by_full_forward(weights, prompt, [(prompt.blanks[0], [SPECIAL.start, *tokens])], config)
            log_probs = jax.nn.log_softmax(logits[len(prompt.part_a) :])
            total = sum(float(log_probs[i, t]) for i, t in enumerate(tokens))
            if length == longest:
                found[tokens] = total
            else:
                for stop in STOPS:
                    found[tokens, stop] = total + float(log_probs[length, stop])
    return found


def test_beams_find_the_best_of_all_answers(tiny):
    """Enough beams to keep every prefix: the search is exhaustive."""
    config, weights = tiny
    prompt = EncodedPrompt((1, 3, 2, 4, 0), (2,))
    found = {}
    for key, value in all_continuations(config, weights, prompt, 3).items():
        tokens = key if not key or (isinstance(key[-1], int) and not isinstance(key[0], tuple)) else key[0]
        found[tokens] = max(found.get(tokens, -np.inf), value)  # by whichever stop is likelier
    best = sorted(found.items(), key=lambda item: -item[1])[:5]
    decoder = Decoder(GLM(config), weights, SPECIAL)
    (answers,) = decoder.complete(
        [prompt], SamplingParams(num_beams=8 * 8 * 8), max_new_tokens=3, num_answers=20, keys=keys(1)
    )
    mine = {}
    for a in answers:
        mine.setdefault(a.tokens[0], a.scores[0])
    for tokens, value in best:
        np.testing.assert_allclose(mine[tokens], value, atol=1e-4)
    assert answers[0].tokens[0] == best[0][0]


@pytest.mark.thorough
def test_one_beam_is_greedy(decoder):
    chosen = prompts(6, seed=5)
    prepared = decoder.params
    greedy = decoder.complete(chosen, SamplingParams(), max_new_tokens=6, keys=keys(6), batch_size=8)
    context = decoder.prefill(chosen, [[]] * 6)
    columns = np.zeros(8, np.int32)
    columns[:6] = [p.blanks[0] for p in chosen]
    found = decoder_lib.search(
        prepared, context, columns, SamplingParams().values(CONFIG.vocab_size),
        model=GLM(CONFIG), shape=SamplingParams().shape(),
        num_beams=1, max_new_tokens=6, start=SPECIAL.start, stops=decoder.stops,
    )  # fmt: skip
    for row, (one,) in enumerate(greedy):
        assert tuple(found.tokens[row, 0, : found.lengths[row, 0]].tolist()) == one.tokens[0]
        np.testing.assert_allclose(found.log_probs[row, 0], one.scores[0], atol=1e-4)


def test_samples_follow_the_probabilities_of_the_model(tiny):
    """First two tokens of 4,096 samples by chi-square, at a temperature."""
    config, weights = tiny
    prompt, temperature, count = EncodedPrompt((1, 3, 2, 4, 0), (2,)), 1.5, 4096
    decoder = Decoder(GLM(config), weights, SPECIAL)
    (answers,) = decoder.complete(
        [prompt], SamplingParams(temperature=temperature), max_new_tokens=2, num_answers=count, keys=keys(1, seed=4)
    )
    expected = {}
    first = jax.nn.softmax(logits_by_full_forward(weights, prompt, [(2, [SPECIAL.start])], config)[-1] / temperature)
    expected[()] = sum(float(first[s]) for s in STOPS)
    for token in set(range(8)) - STOPS:
        logits = logits_by_full_forward(weights, prompt, [(2, [SPECIAL.start, token])], config)[-1]
        second = jax.nn.softmax(logits / temperature)
        expected[token,] = float(first[token]) * sum(float(second[s]) for s in STOPS)
        for other in set(range(8)) - STOPS:
            expected[token, other] = float(first[token]) * float(second[other])
    counts = dict.fromkeys(expected, 0)
    for a in answers:
        counts[a.tokens[0]] += 1
    kept = [k for k, p in expected.items() if p * count >= 5]
    statistic = sum((counts[k] - expected[k] * count) ** 2 / (expected[k] * count) for k in kept)
    degrees = len(kept)
    assert degrees > 20
    assert statistic < degrees + 4 * (2 * degrees) ** 0.5


@pytest.mark.thorough
def test_restrictions_hold(decoder):
    chosen = prompts(8, seed=7, lengths=(5, 20))
    free = decoder.complete(chosen, SamplingParams(), max_new_tokens=20, keys=keys(8))
    assert any(len(a.tokens[0]) < 12 for (a,) in free)
    longer = decoder.complete(chosen, SamplingParams(min_new_tokens=12), max_new_tokens=20, keys=keys(8))
    assert all(len(a.tokens[0]) >= 12 for (a,) in longer)
    varied = decoder.complete(
        chosen, SamplingParams(no_repeat_ngram=2, min_new_tokens=12), max_new_tokens=20, keys=keys(8)
    )
    for (a,) in varied:
        pairs = list(itertools.pairwise(a.tokens[0]))
        assert len(set(pairs)) == len(pairs)
    common = free[0][0].tokens[0][0]
    without = decoder.complete(chosen, SamplingParams(forbidden=(common,)), max_new_tokens=20, keys=keys(8))
    assert all(common not in a.tokens[0] for (a,) in without)


@pytest.mark.thorough
def test_many_prompts_share_few_programs(decoder):
    chosen = prompts(30, seed=8, lengths=(4, 60))
    before = decoder_lib.decode_loop._cache_size()
    decoder.complete(chosen, SamplingParams(), max_new_tokens=3, keys=keys(30), batch_size=1)
    assert decoder_lib.decode_loop._cache_size() - before <= 3  # contexts of 32, 48 and 64 columns


@pytest.mark.thorough
def test_bfloat16_and_stacked_layers_decode_alike(decoder, monkeypatch):
    chosen = prompts(4, seed=6)
    apart = decoder.complete(chosen, SamplingParams(), max_new_tokens=6, keys=keys(4))
    monkeypatch.setattr(steps, "decode_unrolled", lambda: False)
    stacked = Decoder(GLM(CONFIG), params("H"), SPECIAL)
    assert not isinstance(stacked.params["layers"], tuple)
    found = stacked.complete(chosen, SamplingParams(), max_new_tokens=6, keys=keys(4))
    assert [a.tokens for (a,) in found] == [a.tokens for (a,) in apart]
    half = Decoder(GLM(dataclasses.replace(CONFIG, dtype="bfloat16")), params("H"), SPECIAL)
    assert half.params["word_embeddings"]["embedding"].dtype == jnp.bfloat16
    rough = half.complete(chosen, SamplingParams(), max_new_tokens=1, keys=keys(4))
    exact = decoder.complete(chosen, SamplingParams(), max_new_tokens=1, keys=keys(4))
    for (a,), (b,) in zip(rough, exact, strict=True):
        if a.tokens == b.tokens:
            np.testing.assert_allclose(a.scores, b.scores, atol=0.1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, r"lie in \(0, 1\]"),
        ({"num_beams": 2, "temperature": 0.5}, "use one of them"),
        ({"top_k": 5}, "set temperature"),
        ({"length_penalty": 1.0}, "num_beams above 1"),
        ({"num_beams": 0}, "at least 1"),
    ],
)
def test_contradictory_options_are_refused(options, says):
    with pytest.raises(DecodingError, match=says):
        SamplingParams(**options)


def test_too_much_for_the_memory_is_refused_in_bytes(decoder):
    with pytest.raises(DecodingError, match=r"\([\d,]+ bytes\).*lower batch_size"):
        decoder.complete(
            prompts(2), SamplingParams(num_beams=10**6), max_new_tokens=60, num_answers=1, keys=keys(2), batch_size=2
        )


MESH = """
import sys; sys.path[:0] = {paths!r}
import jax, numpy as np
from tests.helpers.decoding_models import CONFIG, SPECIAL, keys, params, prompts
from glm_jax.distributed import sharding
from glm_jax.distributed.mesh import make_mesh
from glm_jax.decoding import Decoder, SamplingParams
from glm_jax.model.transformer import GLM, init_params

chosen = prompts(5, seed=3, blanks=2)
def answers(weights):
    decoder = Decoder(GLM(CONFIG), weights, SPECIAL)
    beams = decoder.complete(chosen[:2], SamplingParams(num_beams=3), max_new_tokens=4, keys=keys(2))
    return decoder.complete(chosen, SamplingParams(), max_new_tokens=4, keys=keys(5)) + beams
alone = answers(params("H"))
boxed = jax.eval_shape(lambda key: init_params(CONFIG, key), jax.random.key(0))
mesh = make_mesh({{"data": 2, "fsdp": 2, "tensor": 2}})
split = jax.device_put(params("H"), sharding.state_shardings(boxed, mesh))
for one, other in zip(alone, answers(split), strict=True):
    assert [a.tokens for a in one] == [a.tokens for a in other]
    np.testing.assert_allclose([a.scores for a in one], [a.scores for a in other], atol=1e-4)
"""


@pytest.mark.thorough
def test_answers_on_a_mesh_are_those_of_one_device():
    paths = [str(ROOT)]
    env = fake_devices(8)
    code = MESH.format(paths=paths)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
