"""The King James Version as the World English Bible has it, verse by verse; both come with the package.

    python -m glm_jax finetune --config=configs/finetune/kjv_to_web.py --workdir=runs/kjv_to_web

Starts from runs/quickstart (./launch/quickstart.sh), whose held-out books are also held out here. Hardware: a CPU.
Measured in 28 minutes on two busy cores, from an earlier quickstart of three layers of width 128: BLEU 55.8 on the 723
verses of the test split, where the source as it is has 40.9. Without practice in copying it stays at the source's.
"""

from glm_jax import config as defaults


def get_config():
    """As many rows of 29,653 pairs as of the same verses' words to copy; each is read about six times."""
    config = defaults.finetune()
    config.tasks = ("kjv_to_web", "configs/tasks/copied_words.py")
    config.test_split = "test"
    config.train_duration = "12000 steps"
    config.packed_length = 256  # three or four pairs share a row
    config.batch_size = 8
    config.schedule.peak_lr = 2e-3
    config.schedule.warmup = "5 %"
    config.label_smoothing = 0.0  # a model of a million parameters is not too certain
    config.eval_every = config.checkpoint_every = "1000 steps"
    config.eval_examples = 96  # of each task; the test has all
    return config
