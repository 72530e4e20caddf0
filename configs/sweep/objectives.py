"""GLM beside other language models of the same network, text and steps: which objective serves a task best?

    for o in masked_lm causal_lm; do
      python -m glm_jax pretrain --config=configs/pretrain/baseline.py:$o,enwik8 --workdir=runs/enwik8_$o
    done
    python -m glm_jax sweep --config=configs/sweep/objectives.py --workdir=runs/sweep_objectives

The task is AG News (configs/sweep/ag_news.py says what it needs). `objectives.py:verses` takes six objectives of the
quickstart instead, and the task of configs/sweep/verses.py, for which nothing is downloaded; its checkpoints are
runs/quickstart and, from configs/pretrain/baseline.py:OBJECTIVE, runs/quickstart_OBJECTIVE.
"""

from glm_jax import config as defaults

# Candidate -> objective; "" is GLM's own.
MODELS = {
    "GLM": "", "masked LM": "masked_lm", "causal LM": "causal_lm", "prefix LM": "prefix_lm", "sentinels": "sentinels",
    "fill in the middle": "fill_in_the_middle", "masked diffusion": "masked_diffusion",
}  # fmt: skip
CAUSAL = ("causal_lm", "fill_in_the_middle")  # only the last token has seen the text: a classifier reads that one


def get_config(task: str = "ag_news"):
    """Every model by a prompt and by a classifier head; the rate is searched for each, three seeds."""
    config = defaults.sweep()
    base = config.base
    base.test_split = "test"
    base.train_duration = "3 epochs"
    base.batch_size = 32
    base.eval_batch_size = 32
    if task == "ag_news":
        checkpoint, models = "runs/enwik8", list(MODELS)[:3]
        base.tasks = ("configs/tasks/ag_news.py",)
        base.few_shot, base.eval_examples = 1000, 400
        base.model.hidden_dropout = 0.1
    elif task == "verses":
        checkpoint, models = "runs/quickstart", list(MODELS)
        base.few_shot = 1000
        base.tasks = ("configs/tasks/bible_parts.py",)
    else:
        raise ValueError(f"unknown task {task!r}; known: ag_news, verses")
    config.space = {"schedule.peak_lr": (1e-3, 3e-3)}
    candidates = []
    for name in models:
        objective = MODELS[name]
        path = f"{checkpoint}_{objective}" if objective else checkpoint
        pool = "pad" if objective in CAUSAL else "cls"
        candidates += [
            {"name": f"{name}, prompt", "init_from": path},
            {"name": f"{name}, head", "init_from": path, "head": "classifier", "pool": pool},
        ]
    config.candidates = (*candidates, {"name": "TF-IDF", "baseline": "tf_idf"})
    return config
