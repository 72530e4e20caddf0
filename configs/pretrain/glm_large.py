"""GLM-Large, 335 M parameters: blank infilling on BERT's corpus.

    python -m glm_jax.pretrain --config=configs/pretrain/glm_large.py --workdir=runs/glm_large

Hardware: the paper trained it on 64 V100, 16 rows on each. Wall time and loss: not measured here.

Scripts: config/ds_block_large.sh and config_block_large.json of the original, equal to Table 7 of the paper.
"""

from glm_jax import config as defaults


def get_config():
    """200,000 steps of 1024 rows."""
    config = defaults.original("large")  # 24 layers, width 1024, 16 heads: Table 7
    config.duration = "200000 steps"  # Table 7, --train-iters
    config.batch_size = 1024  # Table 7

    # English Wikipedia and BooksCorpus (paper, section 3.1): one document a line. 949,50,1 is the script's --split.
    config.data.corpora = ({"source": "texts/wikibook/*.txt", "documents": "line", "validation_fraction": 0.05},)
    config.data.sequence_length = 512  # --seq-length
    config.data.tokenizer.vocabulary = "bert"  # bert-large-uncased
    config.data.tokenizer.path = "vocabularies/bert"

    config.schedule.name = "cosine"  # Table 7, --lr-decay-style
    config.schedule.peak = 2e-4  # Table 7, the script's json
    config.schedule.warmup = "8000 steps"  # Table 7; --warmup .05 of the decay
    config.schedule.decay = "160000 steps"  # --lr-decay-iters
    config.schedule.decay_ratio = 0.05  # --lr-decay-ratio
    return config
