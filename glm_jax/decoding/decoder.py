"""Completions of encoded prompts: batches of prompts of similar length, through the compiled programs, and back."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from glm_jax.decoding import beam_search, sampling, steps
from glm_jax.decoding.options import DecodingError, SamplingParams, SamplingValues
from glm_jax.decoding.prompts import EncodedPrompt
from glm_jax.decoding.unmasking import reveal
from glm_jax.distributed import sharding
from glm_jax.model.adapters import prefix_length
from glm_jax.model.transformer import GLM
from glm_jax.tokenizers.base import Tokenizer
from glm_jax.tokenizers.special import SpecialTokens

_SMALLEST_BUCKET = 32

encode = jax.jit(steps.encode, static_argnames="model")
init_state = jax.jit(sampling.init_state, static_argnames="max_new_tokens")
decode_loop = jax.jit(
    sampling.decode_loop,
    static_argnames=("model", "shape", "start", "stops", "max_new_tokens", "feed_truncated_token"),
    donate_argnames="state",
)
search = jax.jit(
    beam_search.search,
    static_argnames=("model", "shape", "num_beams", "max_new_tokens", "start", "stops", "count_positions"),
)


@dataclasses.dataclass(frozen=True)
class Completion:
    """The answers to the blanks of one prompt, in the order of the text.

    `scores` are sums of the log-probabilities that the model gives to the tokens of an answer, its end included
    (natural logarithm); from beam search, those divided by length^λ, end not counted.
    """

    tokens: tuple[tuple[int, ...], ...]
    scores: tuple[float, ...]


def bucket(length: int) -> int:
    """`length` rounded up to a power of two, or to one and a half of one: at most a third of it is padding."""
    if length <= _SMALLEST_BUCKET:
        return _SMALLEST_BUCKET
    power = _power_of_two(length)
    return power * 3 // 4 if length <= power * 3 // 4 else power


def rows_of(count: int, mesh: Mesh | None) -> int:
    """Rows of a batch of `count` prompts: a power of two, so that few shapes are compiled, and a multiple of what the
    mesh needs."""
    shards = 1 if mesh is None else sharding.batch_shards(mesh)
    rows = _power_of_two(count)
    return -(-rows // shards) * shards


def _power_of_two(count: int) -> int:
    """`count` rounded up to a power of two."""
    return 1 << (count - 1).bit_length()


class Decoder:
    """A model ready to decode: its parameters are prepared once, its programs compiled once per bucket of lengths.

    Args:
      model, params: `model.apply({"params": params}, …)`; the decoder keeps a copy of the parameters in the dtype that
        the model computes in, where that is another or the backend wants another layout.
      tokenizer: for texts; or special tokens alone, where prompts and answers are ids.
    """

    def __init__(self, model: GLM, params: Any, tokenizer: Tokenizer | SpecialTokens):
        if not isinstance(tokenizer, Tokenizer | SpecialTokens):
            raise TypeError(f"Decoder takes a tokenizer, or SpecialTokens, not {type(tokenizer).__name__}")
        if not isinstance(model, GLM) or not isinstance(params, Mapping):
            raise TypeError(
                f"Decoder takes (model, params, tokenizer), not {type(model).__name__} and {type(params).__name__}"
            )
        if "word_embeddings" not in params:
            raise ValueError(f"params has {', '.join(params)}: pass the tree of the model's parameters itself")
        rows = params["word_embeddings"]["embedding"].shape[0]
        if isinstance(tokenizer, Tokenizer) and tokenizer.num_tokens > rows:
            raise ValueError(
                f"the tokenizer has {tokenizer.num_tokens} tokens, but the model {rows}: they do not belong together"
            )
        self.tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else None
        self.special = tokenizer.special if isinstance(tokenizer, Tokenizer) else tokenizer
        self.model, self.config = model, model.config
        self.mesh = _mesh_of(params)
        self.stops = tuple(sorted({self.special.end, self.special.eos}))
        with self.active():
            params = steps.with_computed_prefix(model, params)
            self.params = steps.prepare(params, config=self.config, unrolled=steps.decode_unrolled())

    def active(self):
        """Context in which the parameters' mesh and the sharding rules hold."""
        if self.mesh is None:
            return contextlib.nullcontext()
        stack = contextlib.ExitStack()
        stack.enter_context(jax.set_mesh(self.mesh))
        stack.enter_context(sharding.logical_axis_rules())
        return stack

    def complete(
        self,
        prompts: Sequence[EncodedPrompt],
        sampling_params: SamplingParams,
        *,
        max_new_tokens: int,
        num_answers: int = 1,
        keys: Any,
        batch_size: int = 16,
    ) -> list[list[Completion]]:
        """`num_answers` completions of each prompt, the best first. `keys` is one PRNG key a prompt.

        Prompts of similar length share a batch of `batch_size` at most; a completion does not depend on the others.
        Raises DecodingError where keys, values and logits exceed the memory of the devices.
        """
        results: list[list[Completion]] = [[] for _ in prompts]
        self._check_blanks(prompts)
        self._check_memory(prompts, max(num_answers, sampling_params.num_beams), max_new_tokens, batch_size)
        with self.active():
            for rows in self._batches(prompts, batch_size):
                chosen = [prompts[i] for i in rows]
                if self.config.layout == "masked":
                    completions = self._unmask(chosen, sampling_params, max_new_tokens)
                elif sampling_params.num_beams > 1:
                    completions = self._beam_search(chosen, sampling_params, max_new_tokens, num_answers)
                else:
                    completions = self._sample(
                        chosen, sampling_params, max_new_tokens, num_answers, keys[np.array(rows)]
                    )
                for row, answers in zip(rows, completions, strict=True):
                    results[row] = answers
        return results

    def stream(
        self, prompt: EncodedPrompt, sampling_params: SamplingParams, *, max_new_tokens: int, key: Any
    ) -> Iterator[tuple[int, int | None, float]]:
        """Tokens of one prompt as they are chosen: (blank in order of filling, token or None at its end, score)."""
        if self.config.layout == "masked":
            raise DecodingError("a masked language model writes in no order that could be streamed: use fill()")
        self._check_blanks([prompt])
        self._check_memory([prompt], 1, max_new_tokens, 1)
        values = sampling_params.values(self.config.vocab_size)
        with self.active():
            context, columns, state = self.init_state([prompt], max_new_tokens, 1, key[None])
        for step in range(state.tokens.shape[-1]):
            with self.active():
                state = self.decode(
                    context, columns, state, jnp.int32(step + 1), sampling_params, values, max_new_tokens
                )
            record = (state.tokens, state.blanks, state.log_probs, state.live)
            token, blank, score, live = (a[0, 0] for a in jax.device_get(record))
            if blank[step] >= 0:
                stopped = int(token[step]) in self.stops
                yield int(blank[step]), None if stopped else int(token[step]), float(score[step])
            if not live:
                return

    def _batches(self, prompts, batch_size):
        order = sorted(range(len(prompts)), key=lambda i: (bucket(_context_length(prompts[i])), len(prompts[i].blanks)))
        groups: dict[tuple[int, int], list[int]] = {}
        for i in order:
            blanks = _power_of_two(len(prompts[i].blanks))
            groups.setdefault((bucket(_context_length(prompts[i])), blanks), []).append(i)
        for rows in groups.values():
            for at in range(0, len(rows), batch_size):
                yield rows[at : at + batch_size]

    def prefill(self, prompts: Sequence[EncodedPrompt], parts_b: Sequence[list]) -> steps.PrefillCache:
        """The contexts of a batch: Part A, then each prompt's list of (token, position, block position) of Part B."""
        return encode(self.params, *self.padded_rows(prompts, parts_b), model=self.model)

    def padded_rows(self, prompts: Sequence[EncodedPrompt], parts_b: Sequence[list]) -> tuple[np.ndarray, ...]:
        """Tokens, positions, block positions, prefix lengths and lengths of a batch, padded."""
        rows, special = rows_of(len(prompts), self.mesh), self.special
        width = bucket(max(len(p.part_a) + len(b) for p, b in zip(prompts, parts_b, strict=True)))
        tokens, positions, block_positions = (np.full((rows, width), fill, np.int32) for fill in (special.pad, 0, 0))
        prefix_lengths, lengths = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        for row, (prompt, part_b) in enumerate(zip(prompts, parts_b, strict=True)):
            n, whole = len(prompt.part_a), len(prompt.part_a) + len(part_b)
            prefix_lengths[row], lengths[row] = n, whole
            tokens[row, :n], positions[row, :n] = prompt.part_a, np.arange(n)
            if part_b:
                tokens[row, n:whole], positions[row, n:whole], block_positions[row, n:whole] = np.array(part_b).T
        return tokens, positions, block_positions, prefix_lengths, lengths

    def init_state(
        self, prompts: Sequence[EncodedPrompt], max_new_tokens: int, num_answers: int, keys: Any
    ) -> tuple[steps.PrefillCache, np.ndarray, sampling.DecodeState]:
        """The contexts of a batch of prompts, the columns of their blanks, and empty answers to the first of them."""
        rows, start = rows_of(len(prompts), self.mesh), self.special.start
        blanks = _power_of_two(max(len(p.blanks) for p in prompts))
        columns = np.full((rows, blanks), -1, np.int32)
        first, prefilled = np.full(rows, start, np.int32), np.zeros(rows, np.int32)
        parts_b = []
        for row, prompt in enumerate(prompts):
            columns[row, : len(prompt.blanks)] = self._positions(prompt)
            given = (start, *prompt.answer_prefix)
            first[row], prefilled[row] = given[-1], len(given) - 1
            parts_b.append(part_b(given[:-1], prompt.blanks[0]))
        keys = jnp.concatenate([keys, jnp.broadcast_to(keys[:1], (rows - len(prompts),))])
        keys = jax.vmap(lambda key: jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(num_answers)))(keys)
        context = self.prefill(prompts, parts_b)
        return context, columns, init_state(context, columns, keys, first, prefilled, max_new_tokens=max_new_tokens)

    def decode(
        self,
        context: steps.PrefillCache,
        columns: np.ndarray,
        state: sampling.DecodeState,
        limit: Any,
        sampling_params: SamplingParams,
        values: SamplingValues,
        max_new_tokens: int,
    ) -> sampling.DecodeState:
        """Decodes what `init_state` returned until every answer is complete or column `limit` (int32) is reached."""
        return decode_loop(
            self.params, context, columns, state, limit, values, model=self.model, shape=sampling_params.shape(),
            start=self.special.start, stops=self.stops, max_new_tokens=max_new_tokens,
        )  # fmt: skip

    def _sample(self, prompts, sampling_params, max_new_tokens, num_answers, keys):
        context, columns, state = self.init_state(prompts, max_new_tokens, num_answers, keys)
        values = sampling_params.values(self.config.vocab_size)
        limit = jnp.int32(state.tokens.shape[-1])
        state = self.decode(context, columns, state, limit, sampling_params, values, max_new_tokens)
        record = jax.device_get((state.tokens, state.blanks, state.log_probs))
        results = []
        for row, prompt in enumerate(prompts):
            completions = [self._gather(prompt, *(a[row, n] for a in record)) for n in range(num_answers)]
            results.append(sorted(completions, key=lambda completion: -sum(completion.scores)))
        return results

    def _gather(self, prompt, tokens, blanks, log_probs) -> Completion:
        tokens_of, score_of = [[] for _ in prompt.blanks], [0.0] * len(prompt.blanks)
        for token, blank, log_prob in zip(tokens.tolist(), blanks.tolist(), log_probs.tolist(), strict=True):
            if blank >= 0:
                score_of[blank] += log_prob
                if token not in self.stops:
                    tokens_of[blank].append(token)
        return _in_text_order(prompt, tokens_of, score_of)

    def _unmask(self, prompts, sampling_params, max_new_tokens):
        """By a masked language model, the surest tokens first. See `unmasking.reveal`."""
        if sampling_params != SamplingParams(forbidden=sampling_params.forbidden):
            raise DecodingError("a masked language model writes its surest tokens: of all options it takes forbidden")
        lengths = [len(prompt.part_a) - 1 + max_new_tokens for prompt in prompts]
        rows, special = rows_of(len(prompts), self.mesh), self.special
        width = bucket(max(lengths))
        tokens, columns = np.full((rows, width), special.pad, np.int32), np.zeros((rows, max_new_tokens), np.int32)
        sizes = np.zeros(rows, np.int32)
        for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            (blank,) = prompt.blanks
            masks = (special.mask,) * max_new_tokens
            tokens[row, :length] = *prompt.part_a[:blank], *masks, *prompt.part_a[blank + 1 :]
            sizes[row], columns[row] = length, np.arange(blank, blank + max_new_tokens)
        forbidden = np.array(sampling_params.forbidden, np.int32)
        stops = (special.end, *(stop for stop in self.stops if stop != special.end))
        found = reveal(self.params, tokens, sizes, columns, forbidden, model=self.model, stops=stops)
        ids, scores = jax.device_get(found)
        completions = []
        for row in range(len(prompts)):
            ends = np.flatnonzero(np.isin(ids[row], stops))
            count = int(ends[0]) if ends.size else max_new_tokens
            completions.append([Completion((tuple(ids[row, :count].tolist()),), (float(scores[row].sum()),))])
        return completions

    def _beam_search(self, prompts, sampling_params, max_new_tokens, num_answers):
        """One blank after another: each sees the best answers to those before; alternatives differ in the last."""
        if any(prompt.answer_prefix for prompt in prompts):
            raise DecodingError(
                "beam search cannot continue an answer that is given in part: use unidirectional=False or num_beams=1"
            )
        values = sampling_params.values(self.config.vocab_size)
        parts_b: list[list] = [[] for _ in prompts]
        best = [([], []) for _ in prompts]  # tokens and scores of the best answers to the blanks so far
        results: list[list[Completion]] = [[] for _ in prompts]
        for number in range(max(len(p.blanks) for p in prompts)):
            rows = [i for i, prompt in enumerate(prompts) if number < len(prompt.blanks)]
            context = self.prefill([prompts[i] for i in rows], [parts_b[i] for i in rows])
            columns = np.zeros(context.lengths.shape, np.int32)
            columns[: len(rows)] = [self._positions(prompts[i])[number] for i in rows]
            hypotheses = search(
                self.params, context, columns, values, model=self.model, shape=sampling_params.shape(),
                num_beams=sampling_params.num_beams, max_new_tokens=max_new_tokens, start=self.special.start,
                stops=self.stops,
            )  # fmt: skip
            hypotheses = jax.device_get(hypotheses)
            for row, i in enumerate(rows):
                answers = _distinct_answers(hypotheses, row)
                earlier, scores = best[i]
                if number == len(prompts[i].blanks) - 1:
                    results[i] = [
                        _in_text_order(prompts[i], [*earlier, tokens], [*scores, score])
                        for tokens, score in answers[:num_answers]
                    ]
                else:
                    tokens, score = answers[0]
                    earlier.append(tokens)
                    scores.append(score)
                    parts_b[i] += part_b((self.special.start, *tokens), prompts[i].blanks[number])
        return results

    def _positions(self, prompt):
        """The position of each blank's answer."""
        if self.config.layout == "glm":
            return prompt.blanks
        return (len(prompt.part_a) - 1,)  # the answer goes on where Part A ends

    def _check_blanks(self, prompts):
        if self.config.layout != "glm" and (several := max((len(p.blanks) for p in prompts), default=1)) > 1:
            raise DecodingError(
                f"a prompt has {several} blanks, but a model of the layout {self.config.layout!r} fills one: give each "
                "a prompt of its own"
            )
        if self.config.layout == "masked" and any(prompt.answer_prefix for prompt in prompts):
            raise DecodingError("a masked language model does not write from left to right: leave out unidirectional")

    def _check_memory(self, prompts, width, max_new_tokens, batch_size):
        limit = _memory_limit()
        if not prompts or limit is None:
            return
        rows = rows_of(min(batch_size, len(prompts)), self.mesh)
        blanks = max(len(p.blanks) for p in prompts)
        context = bucket(max(map(_context_length, prompts))) + prefix_length(self.params)
        cache = steps.cache_bytes(self.config, rows, width, context, blanks * (max_new_tokens + 1))
        logits = 4 * 4 * rows * width * self.config.vocab_size
        limit *= 1 if self.mesh is None else self.mesh.size
        if cache + logits > limit:
            raise DecodingError(
                f"{rows} prompts with {width} beams or answers of {blanks * (max_new_tokens + 1)} tokens need "
                f"{(cache + logits) / 2**30:,.1f} GiB for keys, values and logits ({cache + logits:,} bytes), but "
                f"{limit / 2**30:,.1f} GiB are left: lower batch_size ({batch_size}), num_beams, num_answers or "
                "max_new_tokens"
            )


def _context_length(prompt):
    return len(prompt.part_a) + len(prompt.answer_prefix)


def _distinct_answers(hypotheses: beam_search.Hypotheses, row: int) -> list[tuple[tuple[int, ...], float]]:
    """(tokens, value) of a row, best first. Of an answer that ends with either stop token the better one counts."""
    values: dict[tuple[int, ...], float] = {}
    for tokens, length, value in zip(
        hypotheses.tokens[row], hypotheses.lengths[row], hypotheses.values[row], strict=True
    ):
        if np.isfinite(value):
            values.setdefault(tuple(tokens[:length].tolist()), float(value))
    return list(values.items())


def part_b(tokens: Sequence[int], column: int) -> list[tuple[int, int, int]]:
    """(token, position, block position) of an answer to the blank at `column`."""
    return [(token, column, number) for number, token in enumerate(tokens, start=1)]


def _in_text_order(prompt, tokens, scores) -> Completion:
    order = sorted(range(len(prompt.blanks)), key=lambda i: prompt.blanks[i])
    return Completion(tuple(tuple(tokens[i]) for i in order), tuple(float(scores[i]) for i in order))


def _mesh_of(params):
    placed = getattr(params["word_embeddings"]["embedding"], "sharding", None)
    return placed.mesh if isinstance(placed, NamedSharding) and placed.mesh.size > 1 else None


def _memory_limit() -> int | None:
    """Bytes that are left on a device; on CPU the machine's memory."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
