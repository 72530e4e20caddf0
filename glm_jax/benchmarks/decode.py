"""How fast a model decodes: tokens per second by batch size, against reading all parameters once per token."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from glm_jax.benchmarks.timing import bytes_per_second, seconds
from glm_jax.data.synthetic import SPECIAL
from glm_jax.decoding import decoder as decoder_lib
from glm_jax.decoding.options import SamplingParams
from glm_jax.decoding.prompts import EncodedPrompt
from glm_jax.distributed.sharding import unbox
from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import GLM, init_params, parameter_count


def run(
    size: str = "base",
    dtype: str = "float32",
    prompt_length: int = 128,
    batches: tuple[int, ...] = (1, 8, 32),
    lengths: tuple[int, ...] = (32, 128, 512),
    layers: int | None = None,
    **overrides,
) -> dict:
    """Greedy decoding of synthetic prompts with new parameters of a named `size`; end tokens are forbidden.

    `layers` replaces the number of layers of the size; `overrides` replace other fields of its GLMConfig.
    """
    if layers is not None:
        overrides["num_layers"] = layers
    positions = max(GLMConfig.named(size).max_position_embeddings, prompt_length, max(lengths) + 2)
    config = GLMConfig.named(size, dtype=dtype, **{"max_position_embeddings": positions, **overrides})
    params = jax.jit(lambda key: unbox(init_params(config, key)))(jax.random.key(0))
    decoder = decoder_lib.Decoder(GLM(config), params, SPECIAL)
    # Position embeddings are looked up, not read whole; the head reads the word embeddings.
    positions = sum(leaf.size for name, part in params.items() if "position" in name for leaf in jax.tree.leaves(part))
    read = (parameter_count(config) - positions) * jnp.dtype(dtype).itemsize
    bandwidth = bytes_per_second(decoder.params)
    del params
    new = min(128, max(lengths))
    rows = {
        str(batch): {**_prefill(decoder, batch, prompt_length), **_generation(decoder, batch, prompt_length, new)}
        for batch in batches
    }
    first = rows[str(batches[0])]["tokens_per_second"] / batches[0]
    bound = bandwidth / read
    return {
        "value": first,
        "unit": f"tokens/s at batch {batches[0]}",
        "bound": bound,
        "bound_unit": f"tokens/s if a token only read {read / 1e6:.0f} MB of parameters, at "
        f"{bandwidth / 1e9:.1f} GB/s measured by summing them in the same run",
        "fraction_of_bound": first / bound,
        "model": size,
        "dtype": dtype,
        "prompt_length": prompt_length,
        "by_batch": rows,
        "milliseconds_per_token_by_length": _by_length(decoder, prompt_length, lengths),
        **_compilations(decoder, config),
        "counting": "a token is one column of one row, including the start token; compilation and prefill are excluded",
    }


def _prompts(batch, length):
    rng = np.random.default_rng(0)
    ids = rng.integers(20, 500, (batch, length))
    ids[:, length // 2] = SPECIAL.mask
    return [EncodedPrompt(tuple(row), (length // 2,)) for row in ids.tolist()]


def _sampling():
    return SamplingParams(min_new_tokens=1_000_000)  # never ends on its own


def _prefill(decoder, batch, length):
    prompts = _prompts(batch, length)
    spent = seconds(lambda: decoder.prefill(prompts, [[]] * batch), repeats=5)
    return {"prefill_seconds": spent, "prefill_tokens_per_second": batch * length / spent}


def generation(decoder: decoder_lib.Decoder, batch: int, length: int, new: int) -> Callable[[], float]:
    """A function that decodes `new` tokens after prompts of `length`, and returns the seconds without the prefill."""
    prompts, keys, sampling = _prompts(batch, length), jax.random.split(jax.random.key(0), batch), _sampling()
    values = sampling.values(decoder.config.vocab_size)

    def steps():
        context, columns, state = decoder.init_state(prompts, new, 1, keys)
        jax.block_until_ready(state)
        began = time.perf_counter()
        jax.block_until_ready(decoder.decode(context, columns, state, jnp.int32(new), sampling, values, new).tokens)
        return time.perf_counter() - began

    return steps


def _generation(decoder, batch, length, new):
    steps = generation(decoder, batch, length, new)
    steps()
    spent = sorted(steps() for _ in range(3))[1]
    return {"tokens_per_second": batch * new / spent, "milliseconds_per_step": spent / new * 1e3}


def _by_length(decoder, prompt_length, lengths):
    """Milliseconds per token at batch 1, by the number of new tokens."""
    return {str(n): _generation(decoder, 1, prompt_length, n)["milliseconds_per_step"] for n in lengths}


def _compilations(decoder, config, count=100):
    """How many programs are compiled for prompts of mixed lengths with two new tokens each."""
    rng = np.random.default_rng(1)
    prompts = [_prompts(1, int(n))[0] for n in rng.integers(4, config.max_position_embeddings - 8, count)]
    keys = jax.random.split(jax.random.key(0), count)
    programs = (decoder_lib.encode, decoder_lib.init_state, decoder_lib.decode_loop)
    sizes = [program._cache_size() for program in programs]
    decoder.complete(prompts, SamplingParams(), max_new_tokens=2, keys=keys, batch_size=1)
    compiled = [program._cache_size() - old for program, old in zip(programs, sizes, strict=True)]
    return {"prompts_of_mixed_lengths": count, "compiled_prefills": compiled[0], "compiled_loops": compiled[2]}
