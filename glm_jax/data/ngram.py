"""Unigram and bigram baselines: what a model that ignores all but one word of context reaches on the same targets."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from glm_jax.data.errors import DataError
from glm_jax.data.token_store import Documents

UNIGRAM_K = 0.1
BIGRAM_PRIOR = 100.0
_BLOCK_TOKENS = 4_000_000


@dataclasses.dataclass(frozen=True)
class NgramBaseline:
    """Smoothed counts of the training text.

    unigram: p(b) = (c(b) + k) / (c + k V). bigram: p(b | a) = (c(a b) + m p(b)) / (c(a) + m), which interpolates with
    the unigram, the less the more often `a` was seen (MacKay and Peto, 1995). k and m are `UNIGRAM_K` and
    `BIGRAM_PRIOR`, the best of a grid on the validation text of the embedded corpus, where 50 to 200 hardly differ.

    Both know text only. The token that ends an answer in Part B is no text, so leave those targets out of a comparison.

    Attributes:
      unigram_counts: int64 `[V]`.
      pair_keys: int64, sorted: a * V + b of each pair that occurs; pair_counts: int64, how often.
      context_counts: int64 `[V]`: how often a token is followed by another.
      tokens: tokens counted.
    """

    unigram_counts: Int[np.ndarray, "V"]
    pair_keys: Int[np.ndarray, "pairs"]
    pair_counts: Int[np.ndarray, "pairs"]
    context_counts: Int[np.ndarray, "V"]
    tokens: int

    def unigram_nll(self, target_ids: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """-log p(target) in nats, float64, of the targets' shape."""
        return -np.log(self._unigram(np.asarray(target_ids, np.int64)))

    def nll(
        self, previous_ids: Int[np.ndarray, "..."], target_ids: Int[np.ndarray, "..."], add_k: float | None = None
    ) -> Float[np.ndarray, "..."]:
        """-log p(target | previous) in nats, float64, of the targets' shape.

        `previous_ids` are the tokens before the targets in the original text, CLS at its beginning. With `add_k` the
        plain p(b | a) = (c(a b) + k) / (c(a) + k V) in place of the interpolation, which is better.
        """
        previous, target = np.asarray(previous_ids, np.int64), np.asarray(target_ids, np.int64)
        keys = previous * len(self.unigram_counts) + target
        places = np.minimum(np.searchsorted(self.pair_keys, keys), len(self.pair_keys) - 1)
        pairs = np.where(self.pair_keys[places] == keys, self.pair_counts[places], 0)
        contexts = self.context_counts[previous]
        if add_k is not None:
            return -np.log((pairs + add_k) / (contexts + add_k * len(self.unigram_counts)))
        return -np.log((pairs + BIGRAM_PRIOR * self._unigram(target)) / (contexts + BIGRAM_PRIOR))

    def _unigram(self, target):
        total = self.unigram_counts.sum() + UNIGRAM_K * len(self.unigram_counts)
        return (self.unigram_counts[target] + UNIGRAM_K) / total


def count_ngrams(
    stores: Sequence[Documents], *, vocab_size: int, cls: int, eos: int, max_tokens: int | None = 50_000_000
) -> NgramBaseline:
    """Counts the documents `[CLS] tokens [EOS]` of the training text.

    Args:
      stores: the documents of each corpus.
      vocab_size: V.
      cls, eos: ids.
      max_tokens: count about this many, in documents spread evenly over the stores; None counts everything.

    Raises:
      DataError: there is no document.
    """
    if not sum(map(len, stores)):
        raise DataError("there is no text to count")
    vocab, total = vocab_size, sum(int(store.lengths.sum()) for store in stores)
    share = 1.0 if max_tokens is None else min(1.0, max_tokens / total)
    unigram, keys, counts = np.zeros(vocab, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    for pairs in _pair_blocks(stores, share, cls, eos, vocab):
        unigram += np.bincount(pairs % vocab, minlength=vocab)
        new_keys, new_counts = np.unique(pairs, return_counts=True)
        keys, inverse = np.unique(np.concatenate([keys, new_keys]), return_inverse=True)
        counts = np.bincount(inverse, np.concatenate([counts, new_counts]), minlength=len(keys)).astype(np.int64)
    contexts = np.bincount(keys // vocab, counts, minlength=vocab).astype(np.int64)
    return NgramBaseline(unigram, keys, counts, contexts, int(unigram.sum()))


def _pair_blocks(stores, share, cls, eos, vocab):
    """Yields arrays of a * V + b, of a few million pairs each, to bound the memory."""
    pending, size = [], 0
    for store in stores:
        for document in np.linspace(0, len(store) - 1, max(1, round(share * len(store)))).astype(int).tolist():
            ids = np.concatenate([[cls], store[document].astype(np.int64), [eos]])
            pending.append(ids[:-1] * vocab + ids[1:])
            size += len(ids)
            if size > _BLOCK_TOKENS:
                yield np.concatenate(pending)
                pending, size = [], 0
    if pending:
        yield np.concatenate(pending)
