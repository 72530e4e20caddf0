r"""Text infilling at a mask ratio (paper, section 3.2): epochs, learning rate and batch of config_tasks/seq_blank.sh.

    python -m glm_jax finetune --config=configs/finetune/infilling.py:0.3 --workdir=runs/infilling \
        --config.init_from=CHECKPOINT

Needs data/{train,valid,test}.txt with one text per line. Hardware: any that holds the model; `plan` says which. Not
measured with the released weights.
"""

from glm_jax import config as defaults


def get_config(ratio="0.3"):
    """`ratio`: fraction of the words to blank out; the paper uses 0.1 to 0.5."""
    config = defaults.finetune()
    config.tasks = (f"blank:{ratio}",)
    config.train_duration = "5 epochs"
    config.batch_size = 16
    config.schedule.warmup = "6 %"
    config.test_split = "test"
    return config
