"""GLM-Sent, 335 M parameters: GLM-Large that also learns to write whole sentences.

    python -m glm_jax.pretrain --config=configs/pretrain/glm_sent.py --workdir=runs/glm_sent

Hardware: as GLM-Large, 64 V100. Wall time and loss: not measured here.

Source: the paper, sections 2.2 and 3.3. The original has no pretraining script of it and released no weights; what the
paper does not say is GLM-Large's.
"""

from glm_jax import config as defaults


def get_config():
    """GLM-Large with half of the examples from the sentence objective."""
    config = defaults.original("sent")
    config.duration = "200000 steps"  # as GLM-Large
    config.batch_size = 1024  # as GLM-Large

    # As GLM-Large: English Wikipedia and BooksCorpus, one document a line.
    config.data.corpora = ({"source": "texts/wikibook/*.txt", "documents": "line", "validation_fraction": 0.05},)
    config.data.sequence_length = 512
    config.data.tokenizer.vocabulary = "bert"
    config.data.tokenizer.path = "vocabularies/bert"
    config.data.tokenizer.task_masks = True

    config.corruption.blank_infilling = 0.5  # section 3.3: both objectives with equal chance
    config.corruption.sentence = 0.5  # section 2.2: whole sentences, 15 % of the text
    config.corruption.task_masks = True  # config_tasks/model_blocklm_large_sent.sh, in the history of the original

    config.schedule.name = "cosine"  # from here on as GLM-Large
    config.schedule.peak = 2e-4
    config.schedule.warmup = "8000 steps"
    config.schedule.decay = "160000 steps"
    config.schedule.decay_ratio = 0.05
    return config
