r"""A small GLM trained on Wikipedia, whose vocabulary suits fine-tuning on news better than the Bible's.

    python -m glm_jax pretrain --config=configs/pretrain/enwik8.py --workdir=runs/enwik8

Needs data/enwik8-articles.jsonl.xz with lines {"title": ..., "text": ...}: the 7,704 articles of enwik8 (the first
10^8 bytes of a dump of the English Wikipedia of 2006) without markup, 52 MB, 11.7 M tokens of the vocabulary below.

Hardware: two shared AMD EPYC cores, 5,000 to 6,700 raw tokens per second. Validation loss: 5.275 nats per target,
against 5.980 for a unigram, 5.704 for a bigram and 4.948 for their interpolation. The model is undertrained; a longer
schedule would lower its loss. The measured run was scheduled for 7,000 steps, and shortened to 4,500 at step 3,012 and
to 3,400 at step 3,218.
"""

from glm_jax import config as defaults


def get_config():
    """1.0 M parameters, and 3.1 M in the embeddings of the vocabulary."""
    config = defaults.pretrain()
    config.train_duration = "3400 steps"  # 7.0 M tokens, 0.6 epochs
    config.batch_size = 16
    config.data.corpora = ({"source": "data/enwik8-articles.jsonl.xz"},)
    config.data.sequence_length = 128
    config.data.tokenizer.vocab_size = 16384  # most words of news texts are one token
    config.data.tokenizer.normalization = "nmt_nfkc_cf"  # lower-cases the text, so that words are more frequent
    config.data.tokenizer.training_megabytes = 20.0

    # Blank infilling alone: at most 48 targets per row. Documents would have 128, each a softmax over the vocabulary.
    config.corruption.mask_ratio = 0.2

    config.model.num_layers = 2
    config.model.hidden_size = 192
    config.model.num_heads = 3
    config.model.max_position_embeddings = 256  # allows prompts longer than the training rows
    config.model.hidden_dropout = 0.0
    config.model.attention_dropout = 0.0
    config.model.dtype = "float32"
    config.model.scan_layers = False

    config.schedule.peak_lr = 2e-3
    config.schedule.warmup = "3 %"
    config.log_every = "50 steps"
    config.eval_every = "500 steps"
    config.eval_examples = 256
    config.sample_every = "3400 steps"
    config.checkpoint_every = "500 steps"
    return config
