"""How the work of a step is counted, for MFU and for benchmarks."""

import numpy as np


def useful_flops(config, batch) -> float:
    """Floating-point operations that the step of this batch needs, forward and backward (three times forward).

    Counted: dense layers at real positions (the last layer's queries, projection and feed-forward at targets only),
    attention between visible pairs, vocabulary at targets. Not counted: padding, hidden pairs, what remat computes
    again, the optimizer. `config` is a GLMConfig, `batch` a Batch on the host.
    """
    prefix = np.asarray(batch.prefix_lengths, np.float64)
    targets = np.asarray(batch.target_weights > 0).sum(1).astype(np.float64)
    width, layers = config.hidden_size, config.num_layers
    tokens = prefix + targets
    pairs_a, pairs_b = prefix**2, targets * prefix + targets * (targets + 1) / 2
    dense = 24 * width**2 * tokens * (layers - 1) + (4 * tokens + 20 * targets) * width**2
    attention = 4 * width * ((pairs_a + pairs_b) * (layers - 1) + pairs_b)
    vocabulary = 2 * width * config.vocab_size * targets
    return 3 * float((dense + attention + vocabulary).sum())
