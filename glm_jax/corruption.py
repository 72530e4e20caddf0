"""GLM's objectives: raw rows in, model-ready batches out, on device and inside the compiled step.

`corrupt` is a pure function of (key, global example index, row). Nothing depends on the batch an example stands in,
so any number of hosts, any mesh and any resume see the same batches.

Paper: sections 2.1 (blank infilling), 2.2 (sentence and document objectives), 3.3 (ablations).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from glm_jax import pieces as pieces_lib
from glm_jax import spans as spans_lib
from glm_jax.batch import Batch, Lane, side_by_side
from glm_jax.spans import Capacity, Spans, summed
from glm_jax.tokenizers.special import SpecialTokens

OBJECTIVES = ("blank_infilling", "sentence", "document")
_MOST_LANES = 16


@dataclasses.dataclass(frozen=True)
class CorruptionConfig:
    """What is blanked and how it is laid out. The defaults are the paper's blank infilling.

    The original chooses one objective per batch; here every example draws its own, with the same probabilities, or
    (`side_by_side`) examples take turns.
    """

    # The mixture (probabilities, normalised).
    blank_infilling: float = 1.0
    sentence: float = 0.0
    document: float = 0.0
    # Every row of the model holds one example of each objective, or as many as the mixture says, in a lane of its own
    # whose T and K are that objective's. Nothing is left empty in a row of short blanks for the sake of documents.
    side_by_side: bool = False
    # The laws of the spans.
    mask_ratio: float = 0.15
    average_span_length: float = 3.0  # Poisson λ; length 0 is excluded, so the mean is λ / (1 - e^-λ)
    longest_span: int = 39
    sentence_ratio: float = 0.15
    document_min_ratio: float = 0.5  # least generated share of a row
    document_suffix_prob: float = 0.5  # suffix generation, else one long blank anywhere
    single_span_prob: float = 0.0  # exactly one blank, of the blank-infilling law
    short_sequence_prob: float = 0.0  # cut the row into pieces, each an example of its own
    # The layout.
    task_masks: bool = False  # [sMASK] for sentences and [gMASK] for documents, instead of [MASK] for all
    shuffle_spans: bool = True
    block_positions: bool = True  # False: the second position is 1 throughout Part B
    sentinel_offset: int | None = (
        None  # blank j > 0 gets ids offset + 2(j-1) in Part A and offset + 2(j-1) + 1 in Part B
    )
    random_position: bool = False  # shift the first positions by a random offset that fits `max_position`
    max_position: int | None = None  # positions available; needed by random_position and sentinels
    block_mask_prob: float = 0.0  # replace Part B inputs by [dBLOCK]
    context_mask_ratio: float = 0.0  # replace context next to blanks by [dBLOCK]
    context_mask_range: int = 3
    masked_lm: bool = False  # the same spans as a masked language model: no Part B
    # Static sizes. None: the smallest that blank infilling overflows with probability cap_rate at most.
    max_spans: int | None = None
    max_targets: int | None = None
    cap_rate: float = 1e-4
    # A row with more blanks than T has room for gives up its last tokens: this share of all tokens at most. Room for
    # the rarest rows would be empty in all others. 0, and a `max_spans` of your own, keep every token.
    cut_rate: float = 2e-3

    def __post_init__(self):
        mixture = (self.blank_infilling, self.sentence, self.document)
        if min(mixture) < 0 or sum(mixture) <= 0:
            raise ValueError(f"objective weights {mixture} must be non-negative and not all zero")
        for name in ("mask_ratio", "sentence_ratio", "document_min_ratio"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1")
        for name in (
            "cut_rate",
            "document_suffix_prob",
            "single_span_prob",
            "short_sequence_prob",
            "block_mask_prob",
            "context_mask_ratio",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in 0 … 1")
        if self.average_span_length <= 0 or self.longest_span < 1:
            raise ValueError(
                f"average_span_length={self.average_span_length} and longest_span={self.longest_span} must be positive"
            )
        if self.masked_lm and (self.sentence or self.document):
            raise ValueError("masked_lm is a variant of blank infilling: set sentence=0 and document=0")
        if (self.random_position or self.sentinel_offset is not None) and self.max_position is None:
            raise ValueError(
                "random_position and sentinel_offset need max_position, the size of the position table - 1"
            )
        if self.random_position and self.sentinel_offset is not None:
            raise ValueError(
                "sentinels stand at the last position, which random_position would shift: set one of them off"
            )
        if self.short_sequence_prob and self.sentinel_offset is not None:
            raise ValueError(
                "sentinels number the blanks of one text: set short_sequence_prob=0 or sentinel_offset=None"
            )
        if self.document and not self.block_positions:
            raise ValueError("the document objective needs block_positions: one blank cannot be read without them")
        if self.side_by_side and not self._shares():
            raise ValueError(
                f"side_by_side: a row of at most {_MOST_LANES} examples cannot hold the mixture {mixture}: take "
                "weights in the ratio of small whole numbers, or side_by_side=False"
            )

    @property
    def mixture(self) -> tuple[float, float, float]:
        """Normalised probabilities of `OBJECTIVES`."""
        total = self.blank_infilling + self.sentence + self.document
        return self.blank_infilling / total, self.sentence / total, self.document / total

    def _shares(self) -> tuple[int, ...]:
        """Examples of each objective in the smallest group that holds the mixture exactly; () where none is small."""
        for size in range(1, _MOST_LANES + 1):
            shares = [size * share for share in self.mixture]
            if all(abs(share - round(share)) < 1e-6 for share in shares):
                return tuple(map(round, shares))
        return ()

    def lanes(self) -> tuple["CorruptionConfig", ...]:
        """The corruption of every example that shares a row, in order: consecutive examples of a run."""
        if not self.side_by_side:
            return (self,)
        alone = [
            dataclasses.replace(self, side_by_side=False, **{other: float(other == objective) for other in OBJECTIVES})
            for objective in OBJECTIVES
        ]
        return tuple(config for config, share in zip(alone, self._shares(), strict=True) for _ in range(share))

    def capacity(self, length: int) -> Capacity:
        """Static sizes for rows of `length` tokens, and the rate at which blank infilling meets them.

        A span that does not fit S or K stays unmasked. Sentences and documents may be as long as the row: K = L.
        """
        if not 4 <= length < 2**16:
            raise ValueError(f"sequence length {length} must be at least 4 and below 65536")
        infilling, sentence, document = self.mixture
        pieces = self.max_pieces(length)
        needs = []
        if infilling or self.single_span_prob:
            law = self.mask_ratio, self.average_span_length, self.longest_span
            needs = [spans_lib.infilling_capacity(length, *law, self.cap_rate)]
            if pieces > 1:  # one row in L is cut into the most pieces
                rate = min(self.cap_rate * length / 32, 1.0)
                needs.append(spans_lib.infilling_capacity(length // pieces, *law, rate, pieces))
        if sentence:  # sentences average more tokens than Poisson spans: the same budget needs fewer of them
            spans = max(needs[0].max_spans if needs else 0, min(32, length // 4))
            needs.append(Capacity(max(spans, pieces), length, 0.0))
        if document:
            needs.append(Capacity(pieces, length, 0.0))
        max_spans = self.max_spans or max(need.max_spans for need in needs)
        max_targets = self.max_targets or max(need.max_targets for need in needs)
        # Whole tiles of 8 rows cost nothing extra and often save a padded copy.
        max_spans, max_targets = -(-max_spans // 4) * 4, min(-(-max_targets // 8) * 8, -(-length // 8) * 8)
        return Capacity(max_spans, max_targets, needs[0].cap_rate)

    def max_pieces(self, length: int) -> int:
        """How many pieces a row of `length` tokens can be cut into."""
        return pieces_lib.most_pieces(length) if self.short_sequence_prob else 1

    def row_spans(self, length: int) -> int:
        """Blanks that T has room for beside `length` raw tokens. Only rows of blank infilling can have more."""
        max_spans = self.capacity(length).max_spans
        if self.max_spans or self.sentence or self.short_sequence_prob or self.masked_lm:
            return max_spans
        law = self.mask_ratio, self.average_span_length, self.longest_span
        room = spans_lib.spans_with_room(length, *law, self.cut_rate) if self.blank_infilling else 1
        return min(-(-room // 4) * 4, max_spans)

    def sequence_length(self, length: int) -> int:
        """T for rows of `length` raw tokens: every blank adds its mask and its start token. Lanes add up."""
        if self.side_by_side:
            return sum(lane.sequence_length(length) for lane in self.lanes())
        return length if self.masked_lm else length + 2 * self.row_spans(length)

    def longest_prefix(self, length: int) -> int:
        """The most tokens that Part A of one example can have, from rows of `length`."""
        if self.blank_infilling or self.sentence or self.single_span_prob or self.short_sequence_prob:
            return length  # a blank is at least as long as its mask
        return spans_lib.longest_context(length, self.document_min_ratio)

    def max_block_position(self, length: int) -> int:
        """The largest second position that an example can hold: a row's [CLS] is never blanked."""
        longest = length - 1 if self.sentence or self.document else min(self.longest_span, length - 1)
        return longest + 1 if self.block_positions else 1


def assemble(
    tokens: Int[Array, "L"],
    length: Int[Array, ""],
    pieces: Int[Array, "W"],
    spans: Spans,
    loss_mask: Float[Array, "L"],
    mask_id: Int[Array, ""],
    *,
    config: CorruptionConfig,
    special: SpecialTokens,
    bits: UInt32[Array, "R"] | None = None,
) -> Batch:
    """Lay one example out as Part A, then Part B, given its spans (paper, figure 2). Shapes without the batch axis.

    Several `pieces` (their first columns) stand one behind the other in Part A, each with positions from 0; Part B has
    the spans of all. There must be room for them: `length` + 2 · spans in T.
    `bits` (`ablation_bits` of them) feed the random ablations; None when the config has none of them.
    """
    row = tokens.size
    capacity = config.capacity(row)
    column, target = jnp.arange(config.sequence_length(row)), jnp.arange(capacity.max_targets)
    starts, lengths, closed = spans
    used = lengths > 0
    slot = jnp.arange(used.size)
    count, masked = used.sum(), lengths.sum()
    closed = closed & (not config.masked_lm)
    several = pieces.size > 1
    sizes = jnp.where(used, lengths + closed, 0)
    total = sizes.sum()

    # Per span: the column of its mask in Part A, and its first place among the targets.
    shrink = jnp.where(used, lengths - 1, 0)
    before = starts[:, None] < starts[None, :]
    mask_column = starts - summed(jnp.where(before, shrink[:, None], 0))
    begin = summed(jnp.where(slot[:, None] < slot[None, :], sizes[:, None], 0))

    # Per target: its span is the last one that began.
    span = summed(used[:, None] & (begin[:, None] <= target[None, :])) - 1
    piece_columns = pieces - summed(jnp.where(starts[:, None] < pieces[None, :], shrink[:, None], 0))  # in Part A
    per_span = [begin, starts, lengths, mask_column - _opening(piece_columns, mask_column), closed]
    if several:
        per_span.append(spans_lib.piece_of(pieces, starts))
    begin, start, size, position, closed, *segment = jnp.stack(per_span)[:, span]
    live = target < total
    offset = target - begin
    is_end = (offset == size) & (closed > 0)
    source = jnp.clip(start + offset, 0, row - 1)
    target_ids = jnp.where(is_end, special.end, tokens[source])
    weights = jnp.where(live & (closed == 0), loss_mask[source], live.astype(jnp.float32))
    common = {
        "target_ids": jnp.where(live, target_ids, special.pad),
        "target_weights": weights,
        "target_source": jnp.where(live & ~is_end, source, row),
        "objective": jnp.int32(0),
    }

    if config.masked_lm:
        inside = (starts[:, None] <= column[None, :]) & (column[None, :] < (starts + lengths)[:, None])
        in_row = column < length
        return Batch(
            tokens=jnp.where(in_row, jnp.where(summed(inside) > 0, mask_id, tokens), special.pad),
            position_ids=jnp.where(in_row, column - _opening(pieces, column), 0),
            block_position_ids=jnp.zeros_like(column),
            prefix_lengths=length,
            target_index=jnp.where(live, source, 0),
            segment_ids=jnp.where(in_row, spans_lib.piece_of(pieces, column), 0) if several else None,
            **common,
        )

    prefix = length - masked + count
    # Part A: a column's source lies behind by what the masks before it swallowed.
    source_a = column + summed(jnp.where(mask_column[:, None] < column[None, :], shrink[:, None], 0))
    at_mask = mask_column[:, None] == column[None, :]
    part_a = tokens[jnp.clip(source_a, 0, row - 1)]
    mask_ids, start_ids = mask_id, special.start
    if config.sentinel_offset is not None:
        numbered = config.sentinel_offset + 2 * (slot - 1)
        mask_ids = summed(jnp.where(at_mask, jnp.where(slot == 0, mask_id, numbered)[:, None], 0))
        start_ids = jnp.where(span == 0, special.start, config.sentinel_offset + 2 * (span - 1) + 1)
        position = jnp.full_like(position, config.max_position)
    part_a = jnp.where(summed(at_mask) > 0, mask_ids, part_a)

    # Part B: inputs are the targets, one to the right, behind a start token.
    inputs = jnp.where(offset == 0, start_ids, jnp.roll(target_ids, 1))
    block_position = offset + 1 if config.block_positions else jnp.ones_like(offset)
    shift = 0
    if bits is not None:
        if config.block_mask_prob:
            hidden = spans_lib.chance(bits[: target.size], config.block_mask_prob) & (offset > 0)
            inputs = jnp.where(hidden, special.block_mask, inputs)
        if config.context_mask_ratio:
            distance = jnp.abs(mask_column[:, None] - column[None, :]).min(0)
            near = (distance <= config.context_mask_range) | (column >= prefix - config.context_mask_range)
            near &= (column < prefix) & (distance > 0)
            keys = jnp.where(near, bits[target.size : -1] >> 8, 2**24).astype(jnp.int32)
            chosen = jnp.argsort(jnp.argsort(keys)) < spans_lib.budget(config.context_mask_ratio, length, row)
            part_a = jnp.where(near & chosen, special.block_mask, part_a)
        if config.random_position:
            shift = spans_lib.below(bits[-1], jnp.maximum(config.max_position - (prefix - 1), 1))

    in_a = column < prefix
    in_b = ~in_a & (column < prefix + total)
    packed = jnp.stack([inputs, position, block_position, *segment], -1)[jnp.clip(column - prefix, 0, target.size - 1)]

    def lay_out(a, b, padding):
        return jnp.where(in_a, a, jnp.where(in_b, b, padding)).astype(jnp.int32)

    return Batch(
        tokens=lay_out(part_a, packed[:, 0], special.pad),
        position_ids=lay_out(column - _opening(piece_columns, column) + shift, packed[:, 1] + shift, 0),
        block_position_ids=lay_out(0, packed[:, 2], 0),
        prefix_lengths=prefix,
        target_index=jnp.where(live, prefix + target, 0),
        segment_ids=lay_out(spans_lib.piece_of(piece_columns, column), packed[:, 3], 0) if several else None,
        **common,
    )


def ablation_bits(config: CorruptionConfig, length: int) -> int:
    """How many random words `assemble` needs for the ablations that are switched on."""
    if not (config.block_mask_prob or config.context_mask_ratio or config.random_position):
        return 0
    return config.capacity(length).max_targets + config.sequence_length(length) + 1


def _opening(starts, columns):
    """First column of the piece that each column belongs to."""
    return jnp.where(starts[:, None] <= columns[None, :], starts[:, None], 0).max(0)


def _corrupt_example(key, tokens, length, index, sentence_ends, loss_mask, *, config, special):
    row = tokens.size
    capacity = config.capacity(row)
    slots = capacity.max_spans
    infilling, sentence, document = config.mixture
    widths = {
        "choice": 4,
        "infilling": 5 * slots if infilling or config.single_span_prob else 0,
        "sentence": row + slots if sentence else 0,
        "document": 3 * config.max_pieces(row) if document else 0,
        "ablation": ablation_bits(config, row),
    }
    # One call for all random words of an example: each call costs a key schedule.
    words = jax.random.bits(jax.random.fold_in(key, index), (sum(widths.values()),), jnp.uint32)
    cuts = np.cumsum(list(widths.values()))[:-1]
    bits = dict(zip(widths, jnp.split(words, cuts), strict=True))

    pieces = pieces_lib.whole(tokens, length)
    if config.short_sequence_prob:
        short = spans_lib.chance(bits["choice"][2], config.short_sequence_prob)
        ends_text = sentence_ends[tokens] | (tokens == special.eos)
        pieces = pieces_lib.cut(bits["choice"][3], tokens, length, ends_text, short, cls=special.cls)
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
        weights = spans_lib.length_weights(config.average_span_length, config.longest_span)
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
    batch = assemble(
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
    `config.lanes()`. A row whose blanks do not fit T loses its last tokens (`CorruptionConfig.cut_rate`).

    Raises ValueError when `sentence_ends` is needed and absent, and for examples that do not fill their lanes.
    """
    if sentence_ends is None:
        if config.sentence or config.short_sequence_prob:
            raise ValueError("the sentence objective and short sequences need sentence_ends: tokenizer.sentence_ends()")
        sentence_ends = jnp.zeros(1, bool)
    if loss_mask is None:
        loss_mask = jnp.ones(tokens.shape, jnp.float32)
    examples, row = tokens.shape
    lanes = config.lanes()
    if examples % len(lanes):
        raise ValueError(f"{examples} examples do not fill rows of {len(lanes)}: take a multiple of {len(lanes)}")

    def corrupted(number, lane):
        # By a reshape, so that rows stay on their devices.
        arrays = [a.reshape(-1, len(lanes), *a.shape[1:])[:, number] for a in (tokens, lengths, index, loss_mask)]
        one = functools.partial(_corrupt_example, config=lane, special=special)
        batch = jax.vmap(one, (None, 0, 0, 0, None, 0))(key, *arrays[:3], sentence_ends, arrays[3])
        place = Lane(batch.tokens.shape[1], batch.target_ids.shape[1], lane.longest_prefix(row))
        return batch.replace(lanes=(place,))

    parts = [corrupted(number, lane) for number, lane in enumerate(lanes)]
    return parts[0] if len(parts) == 1 else side_by_side(parts)
