"""AG News: what trains (everything, a prefix, low-rank factors, a soft prompt, biases, a head), and which prompt.

    python -m glm_jax sweep --config=configs/sweep/ag_news.py --workdir=runs/sweep_ag_news

Needs data/ag_news (configs/tasks/ag_news.py) and the checkpoint runs/enwik8 (configs/pretrain/enwik8.py). Each method's
learning rate is chosen on the 800 validation examples; the test has 800 others.
"""

from glm_jax import config as defaults


def get_config():
    """Eleven candidates; 2,000 training examples, three epochs, three seeds."""
    config = defaults.sweep()
    config.base.init_from = "runs/enwik8"
    config.base.tasks = ("configs/tasks/ag_news.py",)
    config.base.test_split = "test"
    config.base.few_shot = 2000
    config.base.train_duration = "3 epochs"
    config.base.batch_size = 32
    config.base.model.hidden_dropout = 0.1
    words = {0: " World", 1: " Sports", 2: " Business", 3: " Tech"}
    config.prompts = {
        "category first": {"pattern": "[ Category: [MASK] ] {title} {description}", "verbalizer": words},
        "topic last": {"pattern": "{title} {description} Topic: [MASK].", "verbalizer": words},
        "news last": {"pattern": "{title} {description} This is [MASK] news.", "verbalizer": words},
    }
    config.candidates = (
        {"name": "full", "space": {"schedule.peak_lr": (3e-4, 1e-3, 3e-3)}},
        {"name": "P-tuning v2", "method": "p_tuning_v2", "space": {"schedule.peak_lr": (3e-3, 1e-2, 3e-2)}},
        {"name": "LoRA", "method": "lora", "space": {"schedule.peak_lr": (1e-3, 3e-3, 1e-2)}},
        {"name": "prompt tuning", "method": "prompt", "space": {"schedule.peak_lr": (1e-2, 3e-2, 1e-1)}},
        {"name": "biases", "method": "bias", "space": {"schedule.peak_lr": (1e-3, 3e-3, 1e-2)}},
        {
            "name": "classifier, all trained", "head": "classifier",
            "space": {"schedule.peak_lr": (3e-4, 1e-3, 3e-3)},
        },
        {
            "name": "classifier, head alone", "head": "classifier", "method": "classifier",
            "space": {"schedule.peak_lr": (3e-3, 1e-2, 3e-2)},
        },
        *({"name": name, "prompt": name, "schedule.peak_lr": 1e-3} for name in config.prompts),
        {"name": "majority", "baseline": "majority"},
        {"name": "TF-IDF", "baseline": "tf_idf"},
    )  # fmt: skip
    config.ensembles = {"ensemble of prompts": tuple(config.prompts)}
    return config
