"""How the work of a step is counted, for MFU and for benchmarks."""

import numpy as np


def useful_flops(config, batch) -> float:
    """Floating-point operations that the step of this batch needs, forward and backward (three times forward).

    Counted: dense layers at real positions (the last layer's queries, projection and feed-forward at targets only),
    attention between visible pairs, vocabulary at targets. Not counted: padding, hidden pairs, what remat computes
    again, the optimizer. `config` is a GLMConfig, `batch` a Batch on the host.
    """
    if len(parts := batch.unpack()) > 1:
        return sum(useful_flops(config, part) for part in parts)
    prefix = np.asarray(batch.prefix_lengths, np.float64)
    is_target = np.asarray(batch.target_weights) > 0
    targets = is_target.sum(1).astype(np.float64)
    # Part B; targets of masked language modelling are in Part A, where they attend to all of it.
    written = (is_target & (np.asarray(batch.target_index) >= prefix[:, None])).sum(1).astype(np.float64)
    width, layers = config.hidden_size, config.num_layers
    tokens = prefix + written
    pairs_a, pairs_b = visible_pairs(prefix, written, batch.segment_ids)
    pairs_of_targets = pairs_b + (targets - written) * prefix
    dense = 24 * width**2 * tokens * (layers - 1) + (4 * tokens + 20 * targets) * width**2
    attention = 4 * width * ((pairs_a + pairs_b) * (layers - 1) + pairs_of_targets)
    vocabulary = 2 * width * config.vocab_size * targets
    return 3 * float((dense + attention + vocabulary).sum())


def visible_pairs(prefix, targets, segment_ids=None) -> tuple[np.ndarray, np.ndarray]:
    """How many keys the queries of Part A, and those of Part B, see together, per row; [B] each."""
    if segment_ids is not None:
        column = np.arange(segment_ids.shape[1])
        in_a = column < prefix[:, None]
        in_b = ~in_a & (column < (prefix + targets)[:, None])
        last = np.max(segment_ids)
        prefix, targets = (
            np.stack([np.sum(part & (segment_ids == i), 1) for i in range(1, last + 1)], 1).astype(np.float64)
            for part in (in_a, in_b)
        )
    pairs = prefix**2, targets * prefix + targets * (targets + 1) / 2
    return pairs if segment_ids is None else tuple(p.sum(1) for p in pairs)
