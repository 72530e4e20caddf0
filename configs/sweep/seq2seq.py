r"""Summarization: prefixes and LoRA against full fine-tuning, each at two learning rates, with three seeds.

    python -m glm_jax sweep --config=configs/sweep/seq2seq.py:gigaword --workdir=runs/sweep_gigaword \
        --config.base.init_from=CHECKPOINT

Variants: gigaword and xsum, whose files are expected in data/NAME/ (docs/tasks.md). Hardware: one accelerator for each
worker that holds the model. Not measured with the released weights.
"""

from glm_jax import config as defaults

EPOCHS = {"gigaword": 2, "xsum": 3}


def get_config(task):
    """`task`: one of EPOCHS."""
    if task not in EPOCHS:
        raise ValueError(f"unknown task {task!r}: choose from {', '.join(EPOCHS)}")
    config = defaults.sweep()
    config.base.tasks = (task,)
    config.base.test_split = "test"
    config.base.train_duration = f"{EPOCHS[task]} epochs"
    config.base.batch_size = 64
    config.base.schedule.warmup = "6 %"
    config.base.optimizer.weight_decay = 0.1
    config.base.eval_examples = 2000
    config.candidates = (
        {"name": "full", "space": {"schedule.peak_lr": (1e-5, 3e-5)}},
        {"name": "LoRA", "method": "lora", "space": {"schedule.peak_lr": (1e-4, 3e-4)}},
        {"name": "P-tuning v2", "method": "p_tuning_v2", "space": {"schedule.peak_lr": (3e-3, 1e-2)}},
        {"name": "copy", "baseline": "copy"},
    )
    return config
