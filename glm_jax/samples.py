"""Blanks of held-out text, filled by the model while it learns: the result that people look at."""

import jax
import numpy as np

from glm_jax.corruption import CorruptionConfig, corrupt
from glm_jax.decoding.fill import fill_ids
from glm_jax.model import GLM
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
    prompts = [list(map(int, row[:n])) for row, n in zip(batch.tokens, batch.prefix_lengths, strict=True)]
    truths = [row[weights > 0][:-1] for row, weights in zip(batch.target_ids, batch.target_weights, strict=True)]
    answers = fill_ids(model, params, special, prompts, max_new_tokens=16)
    lines = []
    for prompt, truth, answer in zip(prompts, truths, answers, strict=True):
        at = prompt.index(special.mask) if special.mask in prompt else len(prompt)
        before, after = tokenizer.decode(prompt[:at]), tokenizer.decode(prompt[at + 1 :])
        filled = tokenizer.decode(answer[0]) if answer else ""
        lines.append(
            f"- {before} **[{filled.strip()}]** {after.strip()}  (text: {tokenizer.decode(truth.tolist()).strip()})"
        )
    return "\n".join(lines)
