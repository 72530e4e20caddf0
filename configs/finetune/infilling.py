r"""Text infilling at a mask ratio (paper, section 3.2): epochs, rate and batch as in config_tasks/seq_blank.sh.

    python -m glm_jax finetune --config=configs/finetune/infilling.py:0.3 --workdir=runs/infilling \
        --config.init_from=CHECKPOINT

Wants data/{train,valid,test}.txt, a text a line. Hardware: any that holds the model; `plan` says which. Not measured
here with the released weights.
"""

from glm_jax import config as defaults


def get_config(ratio="0.3"):
    """`ratio`: the share of the words that becomes blanks; the paper's are 0.1 to 0.5."""
    config = defaults.finetune()
    config.tasks = (f"blank:{ratio}",)
    config.train_duration = "5 epochs"
    config.batch_size = 16
    config.schedule.warmup = "6 %"
    config.test_split = "test"
    return config
