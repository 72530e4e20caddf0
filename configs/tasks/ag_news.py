"""Topics of AG's news, zero-shot: python -m glm_jax evaluate --checkpoint RUN --tasks configs/tasks/ag_news.py

Wants data/ag_news/{train,validation,test}.jsonl, lines {"label": 0 to 3, "title": ..., "description": ...}.
Hardware: any. The pattern is the original's number 4.
"""

task = {
    "name": "ag_news",
    "path": "data/ag_news/{split}.jsonl",
    "pattern": "[ Category: [MASK] ] {title} {description}",
    "verbalizer": {0: " World", 1: " Sports", 2: " Business", 3: " Tech"},
    "max_length": 128,
}
