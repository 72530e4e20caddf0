"""GLM-Base, 110 M parameters: blank infilling on BERT's corpus.

    python -m glm_jax pretrain --config=configs/pretrain/glm_base.py --workdir=runs/glm_base

Hardware: the paper's batch is 16 rows on each of 64 V100. Wall time and loss: not measured here.

Scripts: config/ds_block_base.sh and config_block_base.json of the original. Table 7 of the paper has the same values
except for the number of steps, 120k.
"""

from glm_jax import config as defaults


def get_config():
    """150,000 steps of 1024 rows."""
    config = defaults.original("base")  # 12 layers, width 768, 12 heads: Table 7
    config.train_duration = "150000 steps"  # --train-iters; the paper stops when the decay ends
    config.batch_size = 1024  # Table 7

    # English Wikipedia and BooksCorpus (paper, section 3.1): one document per line. 949,50,1 is the script's --split.
    config.data.corpora = ({"source": "texts/wikibook/*.txt", "documents": "line", "validation_fraction": 0.05},)
    config.data.sequence_length = 512  # --seq-length
    config.data.tokenizer.vocabulary = "bert"  # bert-base-uncased; all uncased BERT vocabularies are the same
    config.data.tokenizer.path = "vocabularies/bert"

    config.schedule.name = "cosine"  # Table 7, --lr-decay-style
    config.schedule.peak_lr = 4e-4  # Table 7, the script's json
    config.schedule.warmup = "6000 steps"  # Table 7; --warmup .05 of the decay
    config.schedule.decay = "120000 steps"  # --lr-decay-iters
    config.schedule.final_lr_ratio = 0.05  # --lr-decay-ratio
    return config
