r"""SuperGLUE tasks by cloze, as the original fine-tunes GLM-Large on them, or GLM-10B with the suffix :10b.

    python -m glm_jax finetune --config=configs/finetune/superglue.py:boolq --workdir=runs/boolq \
        --config.init_from=CHECKPOINT

Needs SuperGLUE's folders in data/ (BoolQ/train.jsonl ...). Hardware: any that holds the model; `plan` says which. Not
measured with the released weights.

Patterns, epochs and batches: config_tasks/task_*.sh of the original. Lengths are in glm_jax/tasks/task.py. Linear decay
after 10 % of warm-up, learning rate 1e-5, weight decay 0.1.
"""

from glm_jax import config as defaults

# pattern, epochs, epochs for GLM-10B, examples per step
TASKS = {
    "boolq": (4, 20, 24, 16),
    "cb": (3, 50, 100, 16),
    "copa": (0, 50, 100, 16),
    "multirc": (0, 15, 12, 64),
    "record": (0, 5, 3, 64),
    "rte": (0, 50, 50, 16),
    "wic": (1, 30, 40, 16),
    "wsc": (2, 50, 100, 16),
}


def get_config(task):
    """`task`: TASK or TASK:10b."""
    name, _, size = task.partition(":")
    if name not in TASKS or size not in ("", "10b"):
        raise ValueError(f"unknown task {task!r}: choose from {', '.join(TASKS)}, or TASK:10b")
    pattern, epochs, epochs_10b, batch = TASKS[name]
    config = defaults.finetune()
    config.tasks = (f"{name}:{pattern}",)
    config.train_duration = f"{epochs_10b if size else epochs} epochs"
    config.batch_size = batch
    if size:  # config_tasks/config_blocklm_10B.json
        config.schedule.peak_lr = 5e-6
        config.optimizer.b2, config.optimizer.weight_decay = 0.95, 0.01
    if name == "wsc":
        config.loss = "mix"
        config.length_penalty = 1.0
    return config
