"""GLM-RoBERTa, 355 M parameters: GLM-Large with RoBERTa's vocabulary, text and batch.

    python -m glm_jax pretrain --config=configs/pretrain/glm_roberta_large.py --workdir=runs/glm_roberta_large

Hardware: the paper's batch is 8 micro batches of 16 rows on each of 64 GPUs. Wall time and loss: not
measured here.

Scripts: config/ds_blockta_large.sh and config_blockta_large.json of the original. Table 7 of the paper has the same
batch, learning rate, warm-up and weight decay, but cosine decay and 250,000 steps.
"""

from glm_jax import config as defaults


def get_config():
    """500,000 steps of 8192 rows."""
    config = defaults.original("roberta-large")  # 24 layers, width 1024, 16 heads: Table 7
    config.train_duration = "500000 steps"  # --train-iters; the paper says 250,000
    config.batch_size = 8192  # Table 7
    config.grad_accumulation_steps = 8  # the script's json

    # Wikipedia and BooksCorpus, CC-News, OpenWebText: --train-data. Files are sampled by their tokens.
    config.data.corpora = ({"source": "texts/roberta/*.jsonl.zst", "validation_fraction": 0.05},)
    config.data.sequence_length = 512  # --seq-length
    config.data.tokenizer.vocabulary = "roberta"
    config.data.tokenizer.path = "vocabularies/roberta"
    config.data.tokenizer.task_masks = True  # --task-mask; with one objective it only adds two ids

    config.optimizer.weight_decay = 0.01  # Table 7, the script's json
    config.schedule.name = "linear"  # --lr-decay-style; the paper says cosine
    config.schedule.peak_lr = 4e-4  # Table 7, the script's json
    config.schedule.warmup = "30000 steps"  # Table 7; --warmup .06 of the decay
    config.schedule.decay = "500000 steps"  # --lr-decay-iters
    config.schedule.final_lr_ratio = 0.025  # --lr-decay-ratio
    config.checkpoint_every = "2500 steps"  # --save-interval
    return config
