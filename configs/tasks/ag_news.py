"""AG News topic classification.

    python -m glm_jax evaluate --checkpoint RUN --tasks configs/tasks/ag_news.py

Needs data/ag_news/{train,validation,test}.jsonl with lines {"label": 0 to 3, "title": ..., "description": ...}.
Hardware: any. The pattern is number 4 of the original.
"""

task = {
    "name": "ag_news",
    "path": "data/ag_news/{split}.jsonl",
    "pattern": "[ Category: [MASK] ] {title} {description}",
    "verbalizer": {0: " World", 1: " Sports", 2: " Business", 3: " Tech"},
    "max_length": 128,
}
