"""Words in random order, to be written as they are: practice in copying, beside a task that rewords its source.

A small model that sees sentences only learns to recite them; words without order cannot be recited. The words are
those of the World English Bible's verses, by the splits of kjv_to_web.
"""

import dataclasses
import random

from glm_jax.tasks.examples import Example
from glm_jax.tasks.seq2seq import modernisation, verse_pairs


def shuffled_verses(split):
    """Examples whose source and target are the same words; each verse has an order of its own."""
    for example in verse_pairs(split):
        words = example.fields["target"].split()
        random.Random(example.id).shuffle(words)
        text = " ".join(words)
        yield Example(example.id, {"source": text, "target": text})


task = dataclasses.replace(modernisation(), name="copied_words", source=shuffled_verses)
