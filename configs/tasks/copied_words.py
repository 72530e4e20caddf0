"""Practice in copying: words in random order, to be written unchanged. It accompanies a task that rewrites its source.

A small model memorizes sentences instead of learning to copy; words in random order cannot be memorized. The words are
those of the verses of the World English Bible, with the splits of kjv_to_web.
"""

import dataclasses
import random

from glm_jax.tasks.examples import Example
from glm_jax.tasks.seq2seq import modernisation, verse_pairs


def shuffled_verses(split):
    """Yields examples whose source and target are the same words, in a random order per verse."""
    for example in verse_pairs(split):
        words = example.fields["target"].split()
        random.Random(example.id).shuffle(words)
        text = " ".join(words)
        yield Example(example.id, {"source": text, "target": text})


task = dataclasses.replace(modernisation(), name="copied_words", source=shuffled_verses)
