"""GLM-2B, 1.9 G parameters: all three objectives on the Pile.

    python -m glm_jax pretrain --config=configs/pretrain/glm_2b.py --workdir=runs/glm_2b

Hardware: the original's launcher uses 32 nodes of 8 GPUs. Wall time and loss: not measured here.

Scripts: config/ds_block_2B.sh and config_block_2B.json, in the history of the original (f83be82, a2e509c). Not in the
paper. The script starts from an earlier run; this config starts from scratch.
"""

from glm_jax import config as defaults


def get_config():
    """250,000 steps of 8192 rows."""
    config = defaults.original("2b")  # 36 layers, width 2048, 32 heads, 1024 positions
    config.train_duration = "250000 steps"  # --train-iters
    config.batch_size = 8192  # 32 rows per GPU, the script's json; 256 GPUs, scripts/ds_pretrain_nvidia.sh
    config.grad_accumulation_steps = 8  # fits TPU slices from 16 chips on (docs/scale.md); does not change results

    # The Pile and CC-News: --train-data. Files are sampled in proportion to their tokens, as in the original.
    config.data.corpora = ({"source": "texts/pile/*.jsonl.zst", "validation_fraction": 0.05},)
    config.data.sequence_length = 512  # --seq-length
    config.data.tokenizer.vocabulary = "gpt2"  # --tokenizer-type GPT2BPETokenizer
    config.data.tokenizer.path = "vocabularies/gpt2"
    config.data.tokenizer.task_masks = True
    config.data.tokenizer.block_mask = True

    config.corruption.blank_infilling = 0.4  # --bert-prob
    config.corruption.sentence = 0.3  # --gap-sentence-prob
    config.corruption.document = 0.3
    config.corruption.document_min_ratio = 0.25  # --gpt-min-ratio
    config.corruption.task_masks = True  # --task-mask
    config.corruption.short_sequence_prob = 0.02  # --short-seq-prob
    config.corruption.block_mask_prob = 0.1  # --block-mask-prob

    config.optimizer.b2, config.optimizer.eps = 0.95, 1e-8  # the script's json
    config.schedule.name = "cosine"  # --lr-decay-style
    config.schedule.peak_lr = 1e-4  # the script's json
    config.schedule.warmup = "7000 steps"  # --warmup .04 of the decay
    config.schedule.decay = "175000 steps"  # --lr-decay-iters
    config.schedule.final_lr_ratio = 0.1  # --lr-decay-ratio
    config.log_every = "50 steps"  # --log-interval
    config.checkpoint_every = "2000 steps"  # --save-interval
    return config
