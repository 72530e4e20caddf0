"""A small GLM that learns on two cores from text that pip brings: the King James and the World English Bible.

./launch/quickstart.sh
"""

from glm_jax import config as defaults


def get_config():
    """A 5-minute run."""
    config = defaults.pretrain()
    config.duration = "600 steps"
    config.batch_size = 16
    config.data.sequence_length = 256
    config.data.tokenizer.vocab_size = 4096

    config.model.num_layers = 4
    config.model.hidden_size = 192
    config.model.num_heads = 3
    config.model.max_position_embeddings = 256
    config.model.hidden_dropout = 0.0  # less than an epoch: nothing is seen twice
    config.model.attention_dropout = 0.0
    config.model.dtype = "float32"  # CPUs have no fast bfloat16 everywhere
    config.model.scan_layers = False

    config.schedule.peak = 2e-3
    config.schedule.warmup = "5 %"
    config.log_every = "20 steps"
    config.eval_every = "100 steps"
    config.eval_examples = 128
    config.show_every = "200 steps"
    config.checkpoint_every = "100 steps"
    return config
