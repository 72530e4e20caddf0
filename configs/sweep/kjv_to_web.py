"""Rewriting King James verses as the World English Bible: what trains, beside the copied source.

    python -m glm_jax sweep --config=configs/sweep/kjv_to_web.py --workdir=runs/sweep_kjv_to_web

Needs no download: pip installs both translations, ./launch/quickstart.sh makes the checkpoint runs/quickstart. These
runs are short; configs/finetune/kjv_to_web.py trains to a good BLEU.
"""

from glm_jax import config as defaults


def get_config():
    """Two methods, two learning rates for each, and the copy; two seeds."""
    config = defaults.sweep()
    config.base.tasks = ("kjv_to_web",)
    config.base.test_split = "test"
    config.base.train_duration = "200 steps"
    config.base.batch_size = 8
    config.base.packed_length = 256
    config.base.label_smoothing = 0.0
    config.base.eval_every = config.base.checkpoint_every = "100 steps"
    config.base.eval_examples = 48
    config.candidates = (
        {"name": "full", "space": {"schedule.peak_lr": (5e-4, 2e-3)}},
        {"name": "LoRA", "method": "lora", "space": {"schedule.peak_lr": (5e-3, 2e-2)}},
        {"name": "copy", "baseline": "copy"},
    )
    config.seeds = (0, 1)
    return config
