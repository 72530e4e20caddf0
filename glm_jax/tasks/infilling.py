"""Text infilling (paper, section 3.2, after Shen et al. 2020): words are blanked out at a ratio, and predicted."""

import dataclasses
import random
from collections.abc import Sequence

from glm_jax.tasks.encoding import Encoded, encode_example
from glm_jax.tasks.errors import TaskError
from glm_jax.tasks.examples import Example, Source, open_text, split_file
from glm_jax.tasks.seq2seq import encode_commands
from glm_jax.tasks.text_cleaning import detokenize_blank
from glm_jax.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class InfillingTask:
    """Texts whose words are blanked out. The metric is BLEU of the filled text against the text.

    Attributes:
      source: a split's name -> examples with the field `text`.
      ratio: share of the words that becomes blanks.
      target_length: maximum number of tokens in a blank.
      no_repeat_ngram: of greedy decoding.
      seed: with an example's name, of its blanks: they are the same in every epoch and evaluation.
    """

    name: str
    source: Source
    ratio: float
    target_length: int = 32
    no_repeat_ngram: int = 3
    seed: int = 0

    def blanked(self, example: Example) -> tuple[str, list[str]]:
        """The text with [MASK]s, and the words that they replace. Raises TaskError for a text too short to lose one."""
        return blank_out(example.fields["text"], self.ratio, random.Random(f"{self.seed} {example.id}"))

    def encode(self, tokenizer: Tokenizer, example: Example, *, training: bool = True) -> Encoded:
        """The text with its blanks and, for training, the answers in text order."""
        text, answers = self.blanked(example)
        return encode_infilling(tokenizer, text, answers if training else None)


def infilling_task(ratio: str, folder: str) -> InfillingTask:
    """The task of the name blank:RATIO. Raises TaskError unless the ratio is a number between 0 and 1."""
    try:
        value = float(ratio)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise TaskError(f"write blank:RATIO with a share of the words between 0 and 1, not {ratio!r}")
    return InfillingTask(f"blank_{ratio}", infilling_source(folder), value)


def infilling_source(folder: str) -> Source:
    """One text a line in {split}.txt (or valid.txt), tokens separated by spaces: the field `text`."""

    def source(split):
        path = split_file(folder, split, "txt", validation="valid")
        with open_text(path) as lines:
            for number, line in enumerate(lines):
                if line.strip():
                    yield Example(f"{split}-{number}", {"text": detokenize_blank(line.strip())})

    return source


def blank_out(text: str, ratio: float, rng: random.Random) -> tuple[str, list[str]]:
    """Blanks out int(ratio · words) words of a text; adjacent ones become one [MASK].

    Returns:
      The text with [MASK]s, and the words of each.

    Raises:
      TaskError: a ratio outside (0, 1], or a text too short to lose a word.
    """
    words = text.split()
    count = int(ratio * len(words))
    if not 0 < ratio <= 1 or not count:
        raise TaskError(
            f"mask ratio {ratio} takes no word of {len(words)}: {text[:60]!r}; raise it, or leave short texts out"
        )
    chosen = set(rng.sample(range(len(words)), count))
    kept: list[str] = []
    blanks: list[list[str]] = []
    for i, word in enumerate(words):
        if i not in chosen:
            kept.append(word)
        elif i - 1 in chosen:
            blanks[-1].append(word)
        else:
            kept.append("[MASK]")
            blanks.append([word])
    return " ".join(kept), [" ".join(blank) for blank in blanks]


def encode_infilling(tokenizer: Tokenizer, text: str, answers: Sequence[str] | None) -> Encoded:
    """A text with [MASK]s and, for training, the answers in text order; each sees the text and the earlier answers.

    Raises TaskError unless there are as many answers as blanks.
    """
    special = tokenizer.special
    ids = encode_commands(tokenizer, text) if hasattr(tokenizer, "encode_commands") else tokenizer.encode_prompt(text)
    columns = [i for i, token in enumerate(ids) if token == special.mask]
    if not columns or (answers is not None and len(answers) != len(columns)):
        raise TaskError(f"{len(answers or ())} answers for {len(columns)} blanks in {text[:60]!r}")
    if answers is not None:  # a mask swallows the space before it, so the space belongs to the answer
        answers = [[*encode_commands(tokenizer, " " + answer), special.end] for answer in answers]
    return encode_example(special.start, ids, columns, answers)


def fill_in(text: str, answers: Sequence[str]) -> str:
    """A text with its [MASK]s replaced by the answers in order."""
    parts = text.split("[MASK]")
    if len(parts) != len(answers) + 1:
        raise TaskError(f"{len(answers)} answers for {len(parts) - 1} blanks")
    return "".join(part + answer for part, answer in zip(parts, [*answers, ""], strict=True))
