"""GLM-Large-Chinese, 356 M parameters: all three objectives on Chinese text.

    python -m glm_jax pretrain --config=configs/pretrain/glm_large_chinese.py --workdir=runs/glm_large_chinese

Hardware: the original's launcher uses 32 nodes of 8 GPUs. Wall time and loss: not measured here.

Scripts: config/ds_block_large_chinese.sh and config_block_large_chinese.json of the original. Not in the paper.
"""

from glm_jax import config as defaults


def get_config():
    """250,000 steps of 8192 rows."""
    config = defaults.original("large-chinese")  # 24 layers, width 1024, 16 heads, 1024 positions
    config.train_duration = "250000 steps"  # --train-iters
    config.batch_size = 8192  # 32 rows per GPU, the script's json; 256 GPUs, scripts/ds_pretrain_nvidia.sh
    config.grad_accumulation_steps = 8  # fits TPU slices from 16 chips on (docs/scale.md); does not change results

    # WuDaoCorpora, Baike, Zhihu: --train-data. Files are sampled in proportion to their tokens, as in the original.
    config.data.corpora = ({"source": "texts/chinese/*.jsonl.zst", "validation_fraction": 0.05},)
    config.data.sequence_length = 512  # --seq-length
    config.data.tokenizer.vocabulary = "chinese"  # --fix-command-token is the default here
    config.data.tokenizer.path = "vocabularies/chinese"
    config.data.tokenizer.task_masks = True
    config.data.tokenizer.block_mask = True

    config.corruption.blank_infilling = 0.4  # --bert-prob
    config.corruption.sentence = 0.3  # --gap-sentence-prob
    config.corruption.document = 0.3
    config.corruption.document_min_ratio = 0.25  # --gpt-min-ratio
    config.corruption.task_masks = True  # --task-mask
    config.corruption.short_sequence_prob = 0.02  # --short-seq-prob
    config.corruption.block_mask_prob = 0.1  # --block-mask-prob

    config.optimizer.weight_decay = 0.01  # the script's json
    config.schedule.name = "cosine"  # --lr-decay-style
    config.schedule.peak_lr = 4e-4  # the script's json
    config.schedule.warmup = "8000 steps"  # --warmup .04 of the decay
    config.schedule.decay = "200000 steps"  # --lr-decay-iters
    config.schedule.final_lr_ratio = 0.1  # --lr-decay-ratio
    config.log_every = "50 steps"  # --log-interval
    config.checkpoint_every = "2000 steps"  # --save-interval
    return config
