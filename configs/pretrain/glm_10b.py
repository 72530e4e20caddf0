"""GLM-10B, 9.9 G parameters: all three objectives on the Pile, on rows of 512 tokens, then 1024.

    python -m glm_jax pretrain --config=configs/pretrain/glm_10b.py:first --workdir=runs/glm_10b_first
    python -m glm_jax pretrain --config=configs/pretrain/glm_10b.py --workdir=runs/glm_10b

The second command starts from the parameters of the first. --config.init_from= trains on long rows from scratch.

Hardware: the original's launcher uses 32 nodes of 8 GPUs. Wall time and loss: not measured here.

Scripts: config/ds_block_10B.sh and ds_block_10B_longer.sh of the original with their json files. Not in the paper.
"""

from glm_jax import config as defaults


def get_config(stage="longer"):
    """Stage "first": 250,000 steps of 5376 rows of 512 tokens. "longer": 50,000 steps of 2048 rows of 1024."""
    if stage not in ("first", "longer"):
        raise ValueError(f"stage {stage!r} of GLM-10B must be 'first' or 'longer'")
    first = stage == "first"
    config = defaults.original("10b")  # 48 layers, width 4096, 64 heads, 1024 positions
    # --train-iters is 250,000 for both. The second stage continues the count of the first, and its learning rate would
    # fall below zero. Here the stage ends with its decay.
    config.train_duration = "250000 steps" if first else "50000 steps"
    # 21 and 8 rows per GPU, the scripts' json; 256 GPUs, scripts/ds_pretrain_nvidia.sh
    config.batch_size = 21 * 256 if first else 8 * 256
    config.init_from = None if first else "runs/glm_10b_first"  # --load, --no-load-lr-scheduler
    # Fits TPU slices from v5e:16x16 on (docs/scale.md). It does not change the results.
    config.grad_accumulation_steps = 7 if first else 4

    # The Pile and CC-News: --train-data. Files are sampled in proportion to their tokens, as in the original.
    config.data.corpora = ({"source": "texts/pile/*.jsonl.zst", "validation_fraction": 0.05},)
    config.data.sequence_length = 512 if first else 1024  # --seq-length
    config.data.tokenizer.vocabulary = "gpt2"  # --tokenizer-type GPT2BPETokenizer
    config.data.tokenizer.path = "vocabularies/gpt2"
    config.data.tokenizer.task_masks = True
    config.data.tokenizer.block_mask = True

    # --bert-prob and --gap-sentence-prob
    objectives = (0.5, 0.3, 0.2) if first else (0.4, 0.3, 0.3)
    config.corruption.blank_infilling, config.corruption.sentence, config.corruption.document = objectives
    config.corruption.document_min_ratio = 0.25  # --gpt-min-ratio
    config.corruption.task_masks = True  # --task-mask
    config.corruption.single_span_prob = 0.0 if first else 0.05  # --single-span-prob
    config.corruption.short_sequence_prob = 0.02 if first else 0.5  # --short-seq-prob
    config.corruption.block_mask_prob = 0.1  # --block-mask-prob

    config.optimizer.b2, config.optimizer.eps = 0.95, 1e-8  # the scripts' json
    config.schedule.name = "cosine" if first else "linear"  # --lr-decay-style
    config.schedule.peak_lr = 1e-4 if first else 3e-5  # the scripts' json
    config.schedule.warmup = "7000 steps" if first else "250 steps"  # --warmup .04 and .005 of the decay
    config.schedule.decay = "175000 steps" if first else "50000 steps"  # --lr-decay-iters
    config.schedule.final_lr_ratio = 0.1  # --lr-decay-ratio
    config.log_every = "50 steps" if first else "25 steps"  # --log-interval
    config.checkpoint_every = "2000 steps" if first else "5000 steps"  # --save-interval
    return config
