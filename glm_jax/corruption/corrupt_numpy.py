"""`corrupt` in NumPy, one example at a time with plain loops: for data workers, and as a reference of what it computes.

The random words, the spans and the layout are those of `corrupt`: the same key and index give the same example.
"""

import jax
import numpy as np
from jaxtyping import Bool, Float, Integer

from glm_jax.corruption import numpy_random as random
from glm_jax.corruption import numpy_spans
from glm_jax.corruption.baselines import baseline_example
from glm_jax.corruption.checks import check_rows
from glm_jax.corruption.config import CorruptionConfig
from glm_jax.corruption.corrupt import word_counts
from glm_jax.corruption.numpy_layout import layout_example
from glm_jax.model.batch import Batch, Slot, pack_objectives
from glm_jax.tokenizers.special import SpecialTokens


def corrupt_numpy(
    key: int | np.ndarray | jax.Array,
    tokens: Integer[np.ndarray, "B L"],
    lengths: Integer[np.ndarray, "B"],
    index: Integer[np.ndarray, "B"],
    sentence_ends: Bool[np.ndarray, "V"] | None = None,
    loss_mask: Float[np.ndarray, "B L"] | None = None,
    *,
    config: CorruptionConfig,
    special: SpecialTokens,
) -> Batch:
    """`corrupt` on the host, without a JAX device: for workers of torch, tf.data or Grain. Returns NumPy arrays.

    `key` is the seed of `jax.random.key`, the two words of a key (`jax.random.key_data`), or a key. The other
    arguments, the result and the errors are those of `corrupt`. One core makes between one and two thousand examples of
    512 tokens a second.

    The examples equal those of `corrupt` on a CPU, except where float32 rounding decides: a gap between spans is a
    rounded quotient of sums, and XLA adds in an order that depends on the program. In about one of some thousand
    examples of 512 tokens, a span starts one token elsewhere. GPUs and TPUs also have another logarithm.
    """
    words = random.key_words(key)
    check_rows(tokens, lengths, index, sentence_ends, loss_mask, config, special)
    tokens = np.asarray(tokens, np.int32)
    if sentence_ends is None:
        sentence_ends = np.zeros(1, bool)
    loss_mask = np.ones(tokens.shape, np.float32) if loss_mask is None else np.asarray(loss_mask, np.float32)
    slots = config.slots()
    parts = []
    for number, slot in enumerate(slots):
        rows = slice(number, None, len(slots))
        arrays = tokens[rows], np.asarray(lengths)[rows], np.asarray(index, np.uint32)[rows], loss_mask[rows]
        parts.append(_corrupt_slot(words, *arrays, sentence_ends, slot, special))
    return parts[0] if len(parts) == 1 else pack_objectives(parts)


def _corrupt_slot(key, tokens, lengths, index, loss_mask, sentence_ends, config, special):
    """The batch of the rows of one slot."""
    row = tokens.shape[1]
    counts = word_counts(config, row)
    words = random.random_bits(random.fold_in(key, index), sum(counts.values()))
    bits = dict(zip(counts, np.split(words, np.cumsum(list(counts.values()))[:-1], axis=1), strict=True))
    slot = Slot(config.sequence_length(row), config.capacity(row).max_targets, config.longest_prefix(row))
    if config.baseline is not None:
        examples = [
            baseline_example(
                config.baseline, tokens[i], lengths[i], loss_mask[i], bits["baseline"][i], slot.targets, special,
                xp=np, random=random,
            )
            for i in range(len(tokens))
        ]  # fmt: skip
        return Batch(**{name: np.stack([example[name] for example in examples]) for name in examples[0]}, slots=(slot,))
    sizes = numpy_spans.sizes_of(config, row)
    bits["infilling"] = bits["infilling"].reshape(len(tokens), 5, -1)
    bits["steps"] = random.exponential(bits["infilling"][:, 2:4])
    examples = [
        _corrupt_example(
            {name: value[i] for name, value in bits.items()}, tokens[i], int(lengths[i]), loss_mask[i], sentence_ends,
            config, special, sizes,
        )
        for i in range(len(tokens))
    ]  # fmt: skip
    fields = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    if sizes.subsequences == 1:
        fields["segment_ids"] = None
    return Batch(**fields, slots=(slot,))


def _corrupt_example(bits, tokens, length, loss_mask, sentence_ends, config, special, sizes):
    choice = bits["choice"]
    example = numpy_spans.Example(tokens[:length], [0], np.arange(length))
    if random.bernoulli(choice[2], config.short_sequence_prob):
        example = numpy_spans.cut_row(choice[3], tokens, length, sentence_ends, special, sizes)
    single = bool(random.bernoulli(choice[1], config.single_span_prob))
    objective = _draw_objective(choice[0], single, config)
    if objective == 0:
        mask_id = special.mask
        if sizes.row_spans < sizes.spans:
            example = numpy_spans.truncate(bits["infilling"], example, single, config, sizes)
        spans = numpy_spans.blank_infilling(bits["infilling"], bits["steps"], example, single, config, special, sizes)
        closed = [True] * len(spans)
    elif objective == 1:
        mask_id = special.sentence_mask if config.task_masks else special.mask
        spans = numpy_spans.sentences(bits["sentence"], example, sentence_ends, config, special, sizes)
        closed = [True] * len(spans)
    else:
        mask_id = special.generation_mask if config.task_masks else special.mask
        spans, closed = numpy_spans.document(bits["document"].reshape(3, -1), example, config, special)
    fields = layout_example(
        example, spans, closed, np.append(loss_mask, np.float32(0)), mask_id, bits["ablation"], config, special, sizes
    )
    return fields | {"objective": np.int32(objective)}


def _draw_objective(word, single, config):
    """Index into OBJECTIVES."""
    weights = config.blank_infilling or config.single_span_prob, config.sentence, config.document
    possible = [number for number, weight in enumerate(weights) if weight]
    if single or len(possible) == 1:
        return possible[0]
    edges = np.cumsum(config.mixture).astype(np.float32)
    choice = np.float32(word >> 8) * np.float32(2**-24)
    return min(int(choice >= edges[0]) + int(choice >= edges[1]), 2)
