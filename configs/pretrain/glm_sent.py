"""GLM-Sent, 335 M parameters: GLM-Large with blank infilling and sentence generation.

    python -m glm_jax pretrain --config=configs/pretrain/glm_sent.py --workdir=runs/glm_sent

Hardware: 64 V100, as for GLM-Large. Wall time and loss: not measured here.

Source: the paper, sections 2.2 and 3.3. The original has no pretraining script for it and released no weights.
Values that the paper does not give are those of GLM-Large.
"""

from glm_jax import config as defaults


def get_config():
    """GLM-Large with half of the examples from the sentence objective."""
    config = defaults.original_large("sent")
    config.data.tokenizer.task_masks = True
    config.corruption.blank_infilling = 0.5  # section 3.3: both objectives with equal probabilities
    config.corruption.sentence = 0.5  # section 2.2: whole sentences, 15 % of the tokens
    config.corruption.task_masks = True  # config_tasks/model_blocklm_large_sent.sh, in the original's history
    config.corruption.pack_objectives = True
    return config
