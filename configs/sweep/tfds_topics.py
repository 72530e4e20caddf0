r"""A classification task of TensorFlow Datasets: prompts against a classifier head, on any released or own checkpoint.

    python -m glm_jax sweep --config=configs/sweep/tfds_topics.py --workdir=runs/sweep_tfds \
        --config.base.init_from=CHECKPOINT

Needs ag_news_subset prepared in data/tfds (the error message says how). Hardware: one accelerator
for each worker that holds the model. Not measured.
"""

from glm_jax import config as defaults


def get_config():
    """Two prompts and a head; the last tenth of the training split validates."""
    config = defaults.sweep()
    config.base.tasks = ({
        "name": "ag_news_subset", "tfds": "ag_news_subset", "fields": {"title": "title", "description": "description"},
        "pattern": "[ Category: [MASK] ] {title} {description}",
        "verbalizer": {0: " World", 1: " Sports", 2: " Business", 3: " Tech"}, "max_length": 128,
    },)  # fmt: skip
    config.base.train_split, config.base.validation_split, config.base.test_split = "train[:90%]", "train[90%:]", "test"
    config.base.train_duration = "1 epochs"
    config.base.batch_size = 64
    config.space = {"schedule.peak_lr": (1e-5, 3e-5)}
    config.prompts = {
        "category first": {"pattern": "[ Category: [MASK] ] {title} {description}"},
        "topic last": {"pattern": "{title} {description} Topic: [MASK]."},
    }
    words = config.base.tasks[0]["verbalizer"]
    for prompt in config.prompts.values():
        prompt["verbalizer"] = words
    config.candidates = (
        *({"name": name, "prompt": name} for name in config.prompts),
        {"name": "classifier head", "head": "classifier"},
    )
    config.ensembles = {"both prompts": tuple(config.prompts)}
    return config
