"""GLM's objectives: raw rows in, model-ready batches out, on device and inside the compiled step.

`corrupt` is a pure function of (key, global example index, row). Nothing depends on the batch an example stands in,
so any number of hosts, any mesh and any resume see the same batches.

Paper: sections 2.1 (blank infilling), 2.2 (sentence and document objectives), 3.3 (ablations).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from glm_jax.corruption import spans as spans_lib
from glm_jax.corruption import subsequences as pieces_lib
from glm_jax.corruption.config import CorruptionConfig
from glm_jax.corruption.layout import ablation_bits, layout_example
from glm_jax.model.batch import Batch, Slot, pack_objectives
from glm_jax.tokenizers.special import SpecialTokens


def _corrupt_example(key, tokens, length, index, sentence_ends, loss_mask, *, config, special):
    row = tokens.size
    capacity = config.capacity(row)
    slots = capacity.max_spans
    infilling, sentence, document = config.mixture
    widths = {
        "choice": 4,
        "infilling": 5 * slots if infilling or config.single_span_prob else 0,
        "sentence": row + slots if sentence else 0,
        "document": 3 * config.max_subsequences(row) if document else 0,
        "ablation": ablation_bits(config, row),
    }
    # One call for all random words of an example: each call costs a key schedule.
    words = jax.random.bits(jax.random.fold_in(key, index), (sum(widths.values()),), jnp.uint32)
    cuts = np.cumsum(list(widths.values()))[:-1]
    bits = dict(zip(widths, jnp.split(words, cuts), strict=True))

    pieces = pieces_lib.whole_row(tokens, length)
    if config.short_sequence_prob:
        short = spans_lib.chance(bits["choice"][2], config.short_sequence_prob)
        ends_text = sentence_ends[tokens] | (tokens == special.eos)
        pieces = pieces_lib.split_row(bits["choice"][3], tokens, length, ends_text, short, cls=special.cls)
        loss_mask = jnp.append(loss_mask, 0)[pieces.origin]
    tokens, length, starts, origin = pieces

    single = spans_lib.chance(bits["choice"][1], config.single_span_prob)
    edges = np.cumsum(config.mixture)
    choice = (bits["choice"][0] >> 8).astype(jnp.float32) * np.float32(2**-24)
    objective = (choice >= edges[0]).astype(jnp.int32) + (choice >= edges[1]).astype(jnp.int32)
    objective = jnp.where(single, 0, jnp.minimum(objective, 2))
    ends = {"cls": special.cls, "eos": special.eos}
    options = []
    if widths["infilling"]:
        weights = spans_lib.length_weights(config.average_span_length, config.max_span_length)
        if config.row_spans(row) < slots:
            budget = spans_lib.budget(config.mask_ratio, length, row)
            _, drawn = spans_lib.draw_lengths(bits["infilling"][:slots], budget, weights, capacity.max_targets, single)
            # A shorter text draws the same blanks or fewer.
            excess = jnp.maximum(length + 2 * drawn.sum() - config.sequence_length(row), 0)
            length = length - jnp.where(objective == 0, excess, 0)
        drawn = spans_lib.blank_infilling(
            bits["infilling"].reshape(5, slots),
            tokens,
            length,
            starts,
            single=single,
            ratio=config.mask_ratio,
            weights=weights,
            max_targets=capacity.max_targets,
            shuffle=config.shuffle_spans,
            **ends,
        )
        options.append((0, special.mask, drawn))
    if sentence:
        drawn = spans_lib.sentences(
            bits["sentence"][:row],
            bits["sentence"][row:],
            tokens,
            length,
            starts,
            sentence_ends[tokens],
            ratio=config.sentence_ratio,
            max_targets=capacity.max_targets,
            shuffle=config.shuffle_spans,
            **ends,
        )
        options.append((1, special.sentence_mask if config.task_masks else special.mask, drawn))
    if document:
        drawn = spans_lib.document(
            bits["document"].reshape(3, -1),
            tokens,
            length,
            starts,
            min_ratio=config.document_min_ratio,
            suffix_prob=config.document_suffix_prob,
            slots=slots,
            **ends,
        )
        options.append((2, special.generation_mask if config.task_masks else special.mask, drawn))

    number, mask_id, spans = options[0]
    mask_id = jnp.int32(mask_id)
    for other, other_mask, other_spans in options[1:]:
        chosen = objective == other
        mask_id = jnp.where(chosen, other_mask, mask_id)
        spans = jax.tree.map(functools.partial(jnp.where, chosen), other_spans, spans)
    objective = objective if len(options) > 1 else jnp.int32(number)
    batch = layout_example(
        tokens,
        length,
        starts,
        spans,
        loss_mask,
        mask_id,
        config=config,
        special=special,
        bits=bits["ablation"] if widths["ablation"] else None,
    )
    if config.short_sequence_prob:  # where a target stood before the row was cut
        batch = batch.replace(target_source=jnp.append(origin, row)[batch.target_source])
    return batch.replace(objective=objective)


@functools.partial(jax.jit, static_argnames=("config", "special"))
def corrupt(
    key: Array,
    tokens: Int[Array, "B L"],
    lengths: Int[Array, "B"],
    index: UInt32[Array, "B"],
    sentence_ends: Bool[Array, "V"] | None = None,
    loss_mask: Float[Array, "B L"] | None = None,
    *,
    config: CorruptionConfig,
    special: SpecialTokens,
) -> Batch:
    """Cut blanks from raw rows and lay them out for the model (paper, section 2).

    `tokens` are rows `[CLS] document [EOS] …` of `lengths` tokens, then padding; `index` numbers each example in the
    whole run; `key` is the run's. `sentence_ends` marks the ids that end a sentence: the sentence objective and short
    sequences need it. `loss_mask` (1 = predict) hides prompts from suffix generation, as the original does.
    T and K of the batch: `config.sequence_length(L)` and `config.capacity(L).max_targets`, or their sums over
    `config.slots()`. A row whose blanks do not fit T loses its last tokens (`CorruptionConfig.truncation_rate`).

    Raises ValueError when `sentence_ends` is needed and absent, and for examples that do not fill their slots.
    """
    if sentence_ends is None:
        if config.sentence or config.short_sequence_prob:
            raise ValueError("the sentence objective and short sequences need sentence_ends: tokenizer.sentence_ends()")
        sentence_ends = jnp.zeros(1, bool)
    if loss_mask is None:
        loss_mask = jnp.ones(tokens.shape, jnp.float32)
    examples, row = tokens.shape
    slots = config.slots()
    if examples % len(slots):
        raise ValueError(f"{examples} examples do not fill rows of {len(slots)}: take a multiple of {len(slots)}")

    def corrupted(number, slot):
        # By a reshape, so that rows stay on their devices.
        arrays = [a.reshape(-1, len(slots), *a.shape[1:])[:, number] for a in (tokens, lengths, index, loss_mask)]
        one = functools.partial(_corrupt_example, config=slot, special=special)
        batch = jax.vmap(one, (None, 0, 0, 0, None, 0))(key, *arrays[:3], sentence_ends, arrays[3])
        place = Slot(batch.tokens.shape[1], batch.target_ids.shape[1], slot.longest_prefix(row))
        return batch.replace(slots=(place,))

    parts = [corrupted(number, slot) for number, slot in enumerate(slots)]
    return parts[0] if len(parts) == 1 else pack_objectives(parts)
