"""GLM-Large, 335 M parameters: blank infilling on BERT's corpus.

    python -m glm_jax pretrain --config=configs/pretrain/glm_large.py --workdir=runs/glm_large

Hardware: the paper trained it on 64 V100, 16 rows on each. Wall time and loss: not measured here.

Scripts: config/ds_block_large.sh and config_block_large.json of the original, equal to Table 7 of the paper.
"""

from glm_jax import config as defaults


def get_config():
    """200,000 steps of 1024 rows."""
    return defaults.original_large("large")  # 24 layers, width 1024, 16 heads: Table 7
