"""Rewriting verses of the King James Version as the World English Bible; pip installs both.

    python -m glm_jax finetune --config=configs/finetune/kjv_to_web.py --workdir=runs/kjv_to_web

Starts from runs/quickstart (./launch/quickstart.sh) and holds out the same books. Hardware: two busy CPU cores. Wall
time: 28 minutes, from an earlier quickstart of three layers of width 128. BLEU: 55.8 on the 723 verses of the test
split, against 40.9 for the unchanged source. Without practice in copying, BLEU stays at that of the source.
"""

from glm_jax import config as defaults


def get_config():
    """Half of the rows hold the 29,653 pairs, half the words of these verses to copy; each is seen about six times."""
    config = defaults.finetune()
    config.tasks = ("kjv_to_web", "configs/tasks/copied_words.py")
    config.test_split = "test"
    config.train_duration = "12000 steps"
    config.packed_length = 256  # three or four pairs per row
    config.batch_size = 8
    config.schedule.peak_lr = 2e-3
    config.schedule.warmup = "5 %"
    config.label_smoothing = 0.0  # a model of a million parameters is not overconfident
    config.eval_every = config.checkpoint_every = "1000 steps"
    config.eval_examples = 96  # per task; the test scores all
    return config
