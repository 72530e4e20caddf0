"""GLM-Doc, 335 M parameters: GLM-Large with blank infilling and document generation.

    python -m glm_jax pretrain --config=configs/pretrain/glm_doc.py --workdir=runs/glm_doc

Hardware: 64 V100, as for GLM-Large. Wall time and loss: not measured here.

Source: the paper, sections 2.2 and 3.3. The original has no pretraining script for it. Values that the paper
does not give are those of GLM-Large.
"""

from glm_jax import config as defaults


def get_config():
    """GLM-Large with half of the examples from the document objective."""
    config = defaults.original_large("doc")
    # Section 3.3: both objectives with equal probabilities. Section 2.2: 50 to 100 % of the text is generated. Both use
    # [MASK], as in config_tasks/model_blocklm_large_generation.sh, which has no --task-mask.
    config.corruption.blank_infilling = 0.5
    config.corruption.document = 0.5
    config.corruption.pack_objectives = True  # 8 % less matmul work than rows that could hold either objective
    return config
