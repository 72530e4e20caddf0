"""Text to rows of tokens: corpora, tokenising, packing and the Grain pipeline. Grain and TFDS load when needed."""

from glm_jax.data.dataset import Dataset, load
from glm_jax.data.errors import DataError
from glm_jax.data.pipeline import train_iterator, validation_batches
from glm_jax.data.specs import CorpusSpec, DataSpec, TokenizerSpec

__all__ = [
    "CorpusSpec",
    "DataError",
    "DataSpec",
    "Dataset",
    "TokenizerSpec",
    "load",
    "train_iterator",
    "validation_batches",
]
