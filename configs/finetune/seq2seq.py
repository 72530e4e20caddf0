r"""Sequence-to-sequence tasks, as the original fine-tunes GLM-Large on them (paper, section 3.2).

    python -m glm_jax finetune --config=configs/finetune/seq2seq.py:gigaword --workdir=runs/gigaword \
        --config.init_from=CHECKPOINT

Needs the task's files in data/NAME/ (docs/tasks.md). Hardware: any that holds the model; `plan` says which. Not
measured with the released weights.

Epochs and learning rates: config_tasks/seq_*.sh of the original. Lengths, beams and length penalties are in
glm_jax/tasks/seq2seq.py. Linear decay after 6 % of warm-up, weight decay 0.1, label smoothing 0.1.
"""

from glm_jax import config as defaults

# epochs, learning rate
TASKS = {
    "gigaword": (10, 3e-5),
    "cnn_dm": (15, 3e-5),
    "cnn_dm_original": (10, 1e-5),
    "xsum": (6, 1e-5),
    "squad_generation": (10, 2e-5),
}


def get_config(task):
    """`task`: one of TASKS, or pairs:FOLDER for your own {split}.source and {split}.target."""
    config = defaults.finetune()
    name, _, folder = task.partition(":")
    if name == "pairs":  # seq_customization.sh, whose weight decay is the default
        epochs, rate = 10, 1e-5
        config.optimizer.weight_decay = 0.01
    elif name in TASKS and not folder:
        epochs, rate = TASKS[name]
    else:
        raise ValueError(f"unknown task {task!r}: choose from {', '.join(TASKS)}, or pairs:FOLDER")
    config.tasks = (task,)
    config.train_duration = f"{epochs} epochs"
    config.batch_size = 64  # the original's scripts do not set it
    config.schedule.peak_lr = rate
    config.schedule.warmup = "6 %"
    config.test_split = "test"
    return config
