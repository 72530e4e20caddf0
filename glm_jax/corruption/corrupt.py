"""GLM's objectives: raw rows in, model-ready batches out, on device and inside the compiled step.

`corrupt` is a pure function of (key, global example index, row). Nothing depends on the batch that an example is in, so
any number of hosts, any mesh and any resume give the same batches.

Paper: sections 2.1 (blank infilling), 2.2 (sentence and document objectives), 3.3 (ablations).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Integer

from glm_jax.corruption import random_bits
from glm_jax.corruption import spans as spans_lib
from glm_jax.corruption.baselines import baseline_example, num_words
from glm_jax.corruption.capacity import length_weights
from glm_jax.corruption.checks import check_key, check_rows
from glm_jax.corruption.config import CorruptionConfig
from glm_jax.corruption.layout import ablation_bits, layout_example
from glm_jax.corruption.random_bits import bernoulli
from glm_jax.corruption.subsequences import split_row, whole_row
from glm_jax.model.batch import Batch, Slot, pack_objectives
from glm_jax.tokenizers.special import SpecialTokens


def corrupt(
    key: Array,
    tokens: Integer[Array | np.ndarray, "B L"],
    lengths: Integer[Array | np.ndarray, "B"],
    index: Integer[Array | np.ndarray, "B"],
    sentence_ends: Bool[Array | np.ndarray, "V"] | None = None,
    loss_mask: Float[Array | np.ndarray, "B L"] | None = None,
    *,
    config: CorruptionConfig,
    special: SpecialTokens,
) -> Batch:
    """Mask spans of raw rows and lay the rows out for the model (paper, section 2). Compiled on first use.

    Works inside and outside `jax.jit` and `jax.vmap`, without a mesh and on meshes of any axis types, with the same
    result. The batch is sharded as the rows of `tokens` are.

    Args:
      key: the run's key, `jax.random.key(seed)`.
      tokens: rows `[CLS] document [EOS] …`, then padding.
      lengths: tokens of each row without padding; 0 for a row that only fills up the batch.
      index: number of each example in the whole run, from 0; with `key` it determines the example.
      sentence_ends: the ids that end a sentence (`tokenizer.sentence_ends()`). The sentence objective and short
        sequences need it.
      loss_mask: 1 where a token may be predicted in suffix generation, 0 for prompts, as in the original.
      config: what is masked. A row whose spans do not fit T is truncated (`CorruptionConfig.truncation_rate`).
      special: the tokenizer's special tokens.

    Returns:
      A batch of B rows, or of B / len(config.slots()) rows with `pack_objectives`, where T and K are
      `config.sequence_length(L)` and `config.capacity(L).max_targets`, or their sums over `config.slots()`.

    Raises:
      ValueError: for an argument of the wrong shape, dtype or value. Values are checked outside `jax.jit` only.
    """
    check_key(key)
    check_rows(tokens, lengths, index, sentence_ends, loss_mask, config, special)
    return _corrupt(key, tokens, lengths, index, sentence_ends, loss_mask, config=config, special=special)


def word_counts(config: CorruptionConfig, length: int) -> dict[str, int]:
    """How many random words each step of an example takes from its stream, in order."""
    if config.baseline is not None:
        return {"baseline": num_words(config.baseline, length)}
    max_spans = config.capacity(length).max_spans
    infilling, sentence, document = config.mixture
    return {
        "choice": 4,
        "infilling": 5 * max_spans if infilling or config.single_span_prob else 0,
        "sentence": length + max_spans if sentence else 0,
        "document": 3 * config.max_subsequences(length) if document else 0,
        "ablation": ablation_bits(config, length),
    }


@functools.partial(jax.jit, static_argnames=("config", "special"))
def _corrupt(key, tokens, lengths, index, sentence_ends, loss_mask, *, config, special):
    if sentence_ends is None:
        sentence_ends = jnp.zeros(1, bool)
    if loss_mask is None:
        loss_mask = jnp.ones(tokens.shape, jnp.float32)
    function = functools.partial(_corrupt_rows, config=config, special=special)
    mesh = jax.typeof(tokens).sharding.mesh
    if AxisType.Explicit in mesh.axis_types:  # vmap and gathers would need a sharding for every intermediate
        function = jax.sharding.auto_axes(function, out_sharding=_row_sharding(tokens, len(config.slots())))
    return function(
        key,
        tokens.astype(jnp.int32),
        lengths.astype(jnp.int32),
        index.astype(jnp.uint32),
        sentence_ends,
        loss_mask.astype(jnp.float32),
    )


def _row_sharding(tokens, num_slots):
    """The sharding of the batch's rows: that of `tokens`, or none if the rows do not divide evenly."""
    sharding = jax.typeof(tokens).sharding
    axes = sharding.spec[0]
    names = axes if isinstance(axes, tuple) else (axes,) if axes else ()
    rows, shards = tokens.shape[0] // num_slots, int(np.prod([sharding.mesh.shape[name] for name in names]))
    return NamedSharding(sharding.mesh, PartitionSpec(axes if rows % shards == 0 else None))


def _corrupt_rows(key, tokens, lengths, index, sentence_ends, loss_mask, *, config, special):
    """The batch of all rows; consecutive rows take consecutive slots."""
    row = tokens.shape[1]
    slots = config.slots()

    def corrupt_slot(number, slot):
        # Strided rows by a reshape, so that rows stay on their devices.
        arrays = [a.reshape(-1, len(slots), *a.shape[1:])[:, number] for a in (tokens, lengths, index, loss_mask)]
        one = functools.partial(_corrupt_example, config=slot, special=special)
        batch = jax.vmap(one, (None, 0, 0, 0, None, 0))(key, *arrays[:3], sentence_ends, arrays[3])
        size = Slot(batch.tokens.shape[1], batch.target_ids.shape[1], slot.longest_prefix(row))
        return batch.replace(slots=(size,))

    parts = [corrupt_slot(number, slot) for number, slot in enumerate(slots)]
    return parts[0] if len(parts) == 1 else pack_objectives(parts)


def _corrupt_example(key, tokens, length, index, sentence_ends, loss_mask, *, config, special):
    """One example, without the batch axis: draw the objective and the spans, then lay the row out."""
    row = tokens.size
    bits = _random_words(key, index, word_counts(config, row))
    if config.baseline is not None:
        return Batch(
            **baseline_example(
                config.baseline, tokens, length, loss_mask, bits["baseline"], config.capacity(row).max_targets,
                special, xp=jnp, random=random_bits,
            )
        )  # fmt: skip
    subsequences = whole_row(tokens, length)
    if config.short_sequence_prob:
        enabled = bernoulli(bits["choice"][2], config.short_sequence_prob)
        ends_text = sentence_ends[tokens] | (tokens == special.eos)
        subsequences = split_row(
            bits["choice"][3], tokens, length, ends_text, enabled, cls=special.cls,
            max_subsequences=config.max_subsequences(row),
        )  # fmt: skip
        loss_mask = jnp.append(loss_mask, 0)[subsequences.origin]
    tokens, length, starts, origin = subsequences

    objective, single = _draw_objective(bits["choice"], config)
    if _may_truncate(config, row):
        length = _truncate(bits["infilling"], length, objective, single, config, row)
    options = _draw_spans(bits, tokens, length, starts, sentence_ends, single, config=config, special=special)
    objective, mask_id, spans = _select(objective, options)
    batch = layout_example(
        tokens,
        length,
        starts,
        spans,
        loss_mask,
        mask_id,
        config=config,
        special=special,
        bits=bits["ablation"] if ablation_bits(config, row) else None,
    )
    if config.short_sequence_prob:  # columns of the raw row, before it was cut
        batch = batch.replace(target_source=jnp.append(origin, row)[batch.target_source])
    return batch.replace(objective=objective)


def _random_words(key, index, counts):
    """The example's random words for each step. One call for all of them: each call costs a key schedule."""
    words = jax.random.bits(jax.random.fold_in(key, index), (sum(counts.values()),), jnp.uint32)
    return dict(zip(counts, jnp.split(words, np.cumsum(list(counts.values()))[:-1]), strict=True))


def _draw_objective(bits, config):
    """Index into OBJECTIVES, int32, and whether the example has a single span, bool."""
    single = bernoulli(bits[1], config.single_span_prob)
    edges = np.cumsum(config.mixture)
    choice = (bits[0] >> 8).astype(jnp.float32) * np.float32(2**-24)
    objective = (choice >= edges[0]).astype(jnp.int32) + (choice >= edges[1]).astype(jnp.int32)
    return jnp.where(single, 0, jnp.minimum(objective, 2)), single


def _may_truncate(config, row):
    """Whether blank infilling can draw more spans than T has room for."""
    infilling = config.blank_infilling or config.single_span_prob
    return bool(infilling) and config.row_spans(row) < config.capacity(row).max_spans


def _truncate(bits, length, objective, single, config, row):
    """The length of the row after truncation, so that its spans fit T."""
    capacity = config.capacity(row)
    weights = length_weights(config.average_span_length, config.max_span_length)
    num_masked = spans_lib.num_masked_tokens(config.mask_ratio, length, row)
    _, drawn = spans_lib.draw_lengths(bits[: capacity.max_spans], num_masked, weights, capacity.max_targets, single)
    # A shorter text draws the same spans or fewer.
    excess = jnp.maximum(length + 2 * drawn.sum() - config.sequence_length(row), 0)
    return length - jnp.where(objective == 0, excess, 0)


def _draw_spans(bits, tokens, length, starts, sentence_ends, single, *, config, special):
    """(objective, mask id, spans) of every objective that the mixture contains."""
    row = tokens.size
    capacity = config.capacity(row)
    infilling, sentence, document = config.mixture
    ids = {"cls": special.cls, "eos": special.eos}
    options = []
    if infilling or config.single_span_prob:
        spans = spans_lib.blank_infilling(
            bits["infilling"].reshape(5, capacity.max_spans),
            tokens,
            length,
            starts,
            single=single,
            ratio=config.mask_ratio,
            weights=length_weights(config.average_span_length, config.max_span_length),
            max_targets=capacity.max_targets,
            shuffle=config.shuffle_spans,
            **ids,
        )
        options.append((0, special.mask, spans))
    if sentence:
        spans = spans_lib.sentences(
            bits["sentence"][:row],
            bits["sentence"][row:],
            tokens,
            length,
            starts,
            sentence_ends[tokens],
            ratio=config.sentence_ratio,
            max_targets=capacity.max_targets,
            shuffle=config.shuffle_spans,
            **ids,
        )
        options.append((1, special.sentence_mask if config.task_masks else special.mask, spans))
    if document:
        spans = spans_lib.document(
            bits["document"].reshape(3, -1),
            tokens,
            length,
            starts,
            min_ratio=config.document_min_ratio,
            suffix_prob=config.document_suffix_prob,
            max_spans=capacity.max_spans,
            **ids,
        )
        options.append((2, special.generation_mask if config.task_masks else special.mask, spans))
    return options


def _select(objective, options):
    """The objective's mask id and spans; a mixture of one objective is that one."""
    first, mask_id, spans = options[0]
    mask_id = jnp.int32(mask_id)
    for other, other_mask, other_spans in options[1:]:
        chosen = objective == other
        mask_id = jnp.where(chosen, other_mask, mask_id)
        spans = jax.tree.map(functools.partial(jnp.where, chosen), other_spans, spans)
    return objective if len(options) > 1 else jnp.int32(first), mask_id, spans
