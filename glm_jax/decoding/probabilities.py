"""How sure the model was of every token of an answer, and what else it considered: a pass over the filled text."""

from collections.abc import Sequence

import jax
import numpy as np

from glm_jax.decoding import steps
from glm_jax.decoding.decoder import Completion, Decoder, bucket, part_b
from glm_jax.decoding.prompts import EncodedPrompt

Choice = tuple[int, float]  # id and log-probability


def token_probabilities(
    decoder: Decoder,
    prompts: Sequence[EncodedPrompt],
    completions: Sequence[Completion],
    top_k: int,
    batch_size: int = 16,
) -> list[list[tuple[int, float, list[Choice]]]]:
    """For each prompt with a completion: (id, log-probability, the `top_k` first choices) of every answer's tokens.

    In the order of the text, and as the model saw it when it wrote it. Not for masked language models, which write in
    no order.
    """
    rows = [_row(decoder.special.start, *pair) for pair in zip(prompts, completions, strict=True)]
    results: list[list[tuple[int, float, list[Choice]]]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].part_a) + len(rows[i][0]))
    for at in range(0, len(order), batch_size):
        numbers = order[at : at + batch_size]
        inputs = decoder.padded_rows([prompts[i] for i in numbers], [rows[i][0] for i in numbers])
        shape = len(inputs[0]), bucket(max(len(rows[i][1]) for i in numbers))
        index, ids = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for row, i in enumerate(numbers):
            for place, (_, column, token) in enumerate(rows[i][1]):
                index[row, place], ids[row, place] = column, token
        with decoder.active():
            found = steps.score(decoder.params, *inputs[:4], index, ids, model=decoder.model, top_k=top_k)
        chosen, values, choices = jax.device_get(found)
        for row, i in enumerate(numbers):
            for place, (_, _, token) in enumerate(rows[i][1]):
                first = list(zip(choices[row, place].tolist(), values[row, place].tolist(), strict=True))
                results[i].append((token, float(chosen[row, place]), first))
    return results


def _row(start, prompt, completion):
    """Part B, and the (blank, column, token) of every target, in the order of the text."""
    rank = {column: number for number, column in enumerate(sorted(prompt.blanks))}
    row, targets = [], []
    for number, blank in enumerate(prompt.blanks):
        given = () if number else prompt.answer_prefix
        answer = completion.tokens[rank[blank]]
        begin = len(prompt.part_a) + len(row) + len(given)
        targets += [(rank[blank], begin + i, token) for i, token in enumerate(answer)]
        row += part_b((start, *given, *answer), blank)
    return row, sorted(targets)
