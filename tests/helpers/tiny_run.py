"""A run so small that it trains in seconds, on a made-up language that bigrams cannot learn but context can."""

import pathlib
import random

from glm_jax import config as defaults
from glm_jax.tokenizers import sentencepiece_tokenizer

WORDS = ("ba", "de", "fi", "go", "ku", "la", "mo", "ne", "pi", "ro", "su", "ta", "vo", "wi", "xa", "ze")


def documents(count: int, seed: int = 0) -> list[str]:
    """Sentences of words in pairs: who opens a sentence with a word, says it again at the end."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        sentences = []
        for _ in range(rng.randint(4, 9)):
            words = [rng.choice(WORDS) for _ in range(rng.randint(3, 7))]
            sentences.append(" ".join([*words, words[0]]) + ".")
        texts.append(" ".join(sentences))
    return texts


def write_corpus(folder: pathlib.Path) -> pathlib.Path:
    """A text file of many documents, and beside it a tokenizer trained on them."""
    texts = documents(400)
    path = folder / "corpus.txt"
    path.write_text("\n\n".join(texts))
    tokenizer = sentencepiece_tokenizer.train(texts, vocab_size=300, pad_vocab_to_multiple_of=64, byte_fallback=True)
    tokenizer.save(folder / "tokenizer")
    return path


def config(folder: pathlib.Path, **changes):
    """The config of a tiny run on `write_corpus(folder)`; `changes` are dotted keys with __ for the dot."""
    config = defaults.pretrain()
    config.train_duration = "12 steps"
    config.batch_size = 8
    config.data.corpora = ({"source": str(folder / "corpus.txt"), "validation_fraction": 0.1},)
    config.data.sequence_length = 48
    config.data.data_dir = str(folder / "data")
    config.data.tokenize_workers = 0
    config.data.tokenizer.path = str(folder / "tokenizer")
    config.model.num_layers = 2
    config.model.hidden_size = 32
    config.model.num_heads = 2
    config.model.max_position_embeddings = 64
    config.model.dtype = "float32"
    config.model.hidden_dropout = config.model.attention_dropout = 0.0
    config.schedule.peak_lr = 3e-3
    config.log_every = "1 steps"
    config.eval_every = "6 steps"
    config.eval_examples = 16
    config.sample_every = "12 steps"
    config.checkpoint_every = "4 steps"
    return with_changes(config, changes)


def with_changes(config, changes):
    """`config` with `changes`, dotted keys with __ for the dot, made in it."""
    for key, value in changes.items():
        *sections, name = key.split("__")
        section = config
        for part in sections:
            section = section[part]
        with section.ignore_type():
            section[name] = value
    return config
