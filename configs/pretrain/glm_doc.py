"""GLM-Doc, 335 M parameters: GLM-Large that also learns to write long texts.

    python -m glm_jax pretrain --config=configs/pretrain/glm_doc.py --workdir=runs/glm_doc

Hardware: as GLM-Large, 64 V100. Wall time and loss: not measured here.

Source: the paper, sections 2.2 and 3.3. The original has no pretraining script of it; what the paper does not say is
GLM-Large's.
"""

from glm_jax import config as defaults


def get_config():
    """GLM-Large with half of the examples from the document objective."""
    config = defaults.original_large("doc")
    # Section 3.3: both objectives with equal chance; section 2.2: 50 to 100 % of the text is generated. One [MASK] for
    # both, as in config_tasks/model_blocklm_large_generation.sh, which has no --task-mask.
    config.corruption.blank_infilling = 0.5
    config.corruption.document = 0.5
    config.corruption.pack_objectives = True  # 8 % fewer products than rows that could hold either
    return config
