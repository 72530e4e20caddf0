"""Fine-tuning runs of a tiny model that end in seconds."""

import json
import pathlib
import random
from typing import Any

from glm_jax import config as defaults
from glm_jax.tuning.train import train
from tests.helpers import tiny_run

TOPICS = {
    "name": "topics",
    "pattern": "{text} It is [MASK].",
    "verbalizer": {"0": " ba", "1": " de"},
}


def prepare(folder: pathlib.Path) -> pathlib.Path:
    """A pretrained run of one step, and data: topics in JSON lines, pairs of texts, and texts to blank out."""
    tiny_run.write_corpus(folder)
    train(
        tiny_run.config(folder, train_duration="1 steps", eval_every="0 steps", sample_every="0 steps"),
        str(folder / "pretrained"),
    )
    rng = random.Random(0)
    for split, count in (("train", 24), ("validation", 10), ("test", 24)):
        texts = [" ".join(rng.choices(tiny_run.WORDS, k=rng.randint(3, 9))) for _ in range(count)]
        rows = [{"text": text, "label": int("go" in text)} for text in texts]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{split}.source").write_text("".join(text + "\n" for text in texts))
        (folder / f"{split}.target").write_text("".join(text.split()[0] + "\n" for text in texts))
        (folder / f"{split}.txt").write_text("".join(text + "\n" for text in texts))
    return folder


def config(place: pathlib.Path, *tasks: Any, **changes: Any) -> Any:
    """A run of two epochs on `tasks`, by default the topics; `changes` are dotted keys with __ for the dot."""
    config = defaults.finetune()
    config.init_from = str(place / "pretrained")
    config.data.data_dir = str(place)
    config.tasks = tasks or ({**TOPICS, "path": str(place / "{split}.jsonl")},)
    config.train_duration = "2 epochs"
    config.batch_size = 8
    config.schedule.peak_lr = 3e-3
    config.log_every = "1 steps"
    return tiny_run.with_changes(config, changes)
