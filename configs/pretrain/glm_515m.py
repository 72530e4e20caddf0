"""GLM-515M: blank infilling and long texts, as GLM-Doc but larger.

    python -m glm_jax.pretrain --config=configs/pretrain/glm_515m.py --workdir=runs/glm_515m

Hardware: the paper names none for it. Wall time and loss: not measured here.

Source: the paper, sections 2.2 and 3.3, and for the shape (30 layers, width 1152, 18 heads)
config_tasks/model_blocklm_1.5_generation.sh. The original has no pretraining script of it; what the paper does not say
is GLM-Large's.
"""

from glm_jax import config as defaults


def get_config():
    """GLM-Large's recipe with half of the examples from the document objective."""
    config = defaults.original("515m")
    config.duration = "200000 steps"  # as GLM-Large
    config.batch_size = 1024  # as GLM-Large

    # As GLM-Large: English Wikipedia and BooksCorpus, one document a line.
    config.data.corpora = ({"source": "texts/wikibook/*.txt", "documents": "line", "validation_fraction": 0.05},)
    config.data.sequence_length = 512
    config.data.tokenizer.vocabulary = "bert"
    config.data.tokenizer.path = "vocabularies/bert"

    # As GLM-Doc: equal chance, one [MASK] for both (no --task-mask in the script above).
    config.corruption.blank_infilling = 0.5
    config.corruption.document = 0.5

    config.schedule.name = "cosine"  # from here on as GLM-Large
    config.schedule.peak = 2e-4
    config.schedule.warmup = "8000 steps"
    config.schedule.decay = "160000 steps"
    config.schedule.decay_ratio = 0.05
    return config
