"""Blanks of held-out text, filled by the model while it learns: the result that people look at."""

import jax
import numpy as np

from glm_jax.corruption.config import CorruptionConfig
from glm_jax.corruption.corrupt import corrupt
from glm_jax.decoding import Decoder, SamplingParams
from glm_jax.decoding.prompts import EncodedPrompt, blank_ids
from glm_jax.model.transformer import GLM
from glm_jax.tokenizers.base import Tokenizer

_WINDOW = 48  # tokens of held-out text around a blank


def fill_held_out(model: GLM, params, tokenizer: Tokenizer, rows, *, count: int = 4, seed: int = 0) -> str:
    """A few windows of held-out rows, each with one blank: text, answer and truth, as Markdown.

    The choice depends on `seed` alone, so that samples of different steps compare. Collective on many hosts.
    """
    special = tokenizer.special
    window = min(_WINDOW, rows.sequence_length)
    chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, count + 2).astype(int)[1:-1].tolist()]
    tokens = np.stack([row["tokens"][:window] for row in chosen])
    lengths = np.array([min(int(row["length"]), window) for row in chosen], np.int32)
    config = CorruptionConfig(single_span_prob=1.0)
    index = np.arange(len(chosen), dtype=np.uint32)
    batch = jax.device_get(corrupt(jax.random.key(seed), tokens, lengths, index, config=config, special=special))
    prompts, truths = [], []
    for number, n in enumerate(batch.prefix_lengths):
        ids = tuple(map(int, batch.tokens[number, :n]))
        blanks = tuple(column for column, token in enumerate(ids) if token in blank_ids(special))
        if blanks:  # a text of a few tokens may be shorter than every span
            prompts.append(EncodedPrompt(ids, blanks))
            truths.append(batch.target_ids[number][batch.target_weights[number] > 0][:-1])
    if not prompts:
        return "- the held-out texts are too short for a blank"
    keys = jax.random.split(jax.random.key(0), len(prompts))  # not used: greedy
    answers = Decoder(model, params, tokenizer).complete(prompts, SamplingParams(), max_new_tokens=16, keys=keys)
    lines = []
    for prompt, truth, (answer,) in zip(prompts, truths, answers, strict=True):
        at = prompt.blanks[0]
        before, after = tokenizer.decode(prompt.part_a[:at]), tokenizer.decode(prompt.part_a[at + 1 :])
        filled = tokenizer.decode(answer.tokens[0])
        lines.append(
            f"- {before} **[{filled.strip()}]** {after.strip()}  (text: {tokenizer.decode(truth.tolist()).strip()})"
        )
    return "\n".join(lines)
