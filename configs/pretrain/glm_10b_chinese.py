"""GLM-10B-Chinese, 9.9 G parameters: all three objectives on Chinese text, on rows of 512 tokens, then 1024.

    python -m glm_jax pretrain --config=configs/pretrain/glm_10b_chinese.py:first --workdir=runs/glm_10b_chinese_first
    python -m glm_jax pretrain --config=configs/pretrain/glm_10b_chinese.py --workdir=runs/glm_10b_chinese

The second command starts from the parameters of the first. --config.init_from= trains on long rows from scratch.

Hardware: the original's launcher uses 32 nodes of 8 GPUs. Wall time and loss: not measured here.

Scripts: config/ds_block_10B_chinese.sh and ds_block_10B_chinese_longer.sh of the original with their json files. Not in
the paper.
"""

from glm_jax import config as defaults


def get_config(stage="longer"):
    """Stage "first": 150,000 steps of 5376 rows of 512 tokens. "longer": 20,000 steps of 2048 rows of 1024."""
    if stage not in ("first", "longer"):
        raise ValueError(f"stage {stage!r} of GLM-10B-Chinese must be 'first' or 'longer'")
    first = stage == "first"
    config = defaults.original("10b-chinese")  # 48 layers, width 4096, 64 heads, 1024 positions
    # --train-iters is 150,000 for both, and the second stage continues the count of the first. Here it ends with its
    # decay.
    config.train_duration = "150000 steps" if first else "20000 steps"
    # 21 and 8 rows per GPU, the scripts' json; 256 GPUs, scripts/ds_pretrain_nvidia.sh
    config.batch_size = 21 * 256 if first else 8 * 256
    config.init_from = None if first else "runs/glm_10b_chinese_first"  # --load, --no-load-lr-scheduler
    # Fits TPU slices from v5e:16x16 on (docs/scale.md). It does not change the results.
    config.grad_accumulation_steps = 7 if first else 4

    # WuDaoCorpora, Baike, Zhihu: --train-data. Files are sampled in proportion to their tokens, as in the original.
    config.data.corpora = ({"source": "texts/chinese/*.jsonl.zst", "validation_fraction": 0.05},)
    config.data.sequence_length = 512 if first else 1024  # --seq-length
    config.data.tokenizer.vocabulary = "chinese"
    config.data.tokenizer.path = "vocabularies/chinese"
    config.data.tokenizer.task_masks = True
    config.data.tokenizer.block_mask = True
    # The scripts lack --fix-command-token, so [gMASK] has the id of <|endofpiece|>. False reproduces that and fits the
    # original's weights. For a new model, True is better.
    config.data.tokenizer.fix_command_token = False

    config.corruption.blank_infilling = 0.5  # --bert-prob
    config.corruption.sentence = 0.3  # --gap-sentence-prob
    config.corruption.document = 0.2
    config.corruption.document_min_ratio = 0.25  # --gpt-min-ratio
    config.corruption.task_masks = True  # --task-mask
    config.corruption.short_sequence_prob = 0.02 if first else 0.5  # --short-seq-prob
    config.corruption.block_mask_prob = 0.1  # --block-mask-prob

    config.optimizer.b2, config.optimizer.eps = 0.95, 1e-8  # the scripts' json
    config.schedule.name = "cosine"  # --lr-decay-style
    config.schedule.peak_lr = 1e-4 if first else 3e-5  # the scripts' json
    config.schedule.warmup = "4800 steps" if first else "500 steps"  # --warmup .04 and .025 of the decay
    config.schedule.decay = "120000 steps" if first else "20000 steps"  # --lr-decay-iters
    config.schedule.final_lr_ratio = 0.1  # --lr-decay-ratio
    config.log_every = "50 steps"  # --log-interval
    config.checkpoint_every = "2000 steps"  # --save-interval
    return config
