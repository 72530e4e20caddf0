"""Text infilling (paper, section 3.2, after Shen et al. 2020): words are blanked out at a ratio, and written again."""

import dataclasses
import random

from glm_jax.tasks.encoding import Encoded
from glm_jax.tasks.examples import Example, Source
from glm_jax.tasks.seq2seq import blank_out, encode_infilling
from glm_jax.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class InfillingTask:
    """Texts whose words are blanked out. Scored by BLEU of the whole text, filled, against the text.

    Attributes:
      source: a split's name -> examples with the field `text`.
      ratio: share of the words that becomes blanks.
      target_length: tokens that a blank may get.
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
        """The text with [MASK]s, and what stood there. Raises TaskError for a text too short to lose a word."""
        return blank_out(example.fields["text"], self.ratio, random.Random(f"{self.seed} {example.id}"))

    def encode(self, tokenizer: Tokenizer, example: Example) -> Encoded:
        """A training example: the text with blanks, then the answers in text order."""
        return encode_infilling(tokenizer, *self.blanked(example))
