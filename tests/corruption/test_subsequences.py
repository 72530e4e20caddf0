"""Short sequences: subsequences that share a row."""

import functools

import jax
import numpy as np
import pytest

from glm_jax import GLM, GLMConfig
from glm_jax.corruption.config import CorruptionConfig
from glm_jax.corruption.corrupt import corrupt
from glm_jax.corruption.spans import UNUSED
from glm_jax.corruption.subsequences import split_row
from glm_jax.model.transformer import init_params
from glm_jax.model.visibility import visible
from glm_jax.training.flops import visible_pairs
from tests.helpers.corruption_records import SENTENCE_END, SPECIAL

VOCABULARY = 1000


def _rows(count, length, ends=0.0, documents=0.0, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20, VOCABULARY, (count, length)).astype(np.int32)
    tokens[rng.random((count, length)) < ends] = SENTENCE_END
    for row in tokens:  # [EOS][CLS] here and there
        for at in np.flatnonzero(rng.random(length - 2) < documents):
            row[at : at + 2] = SPECIAL.eos, SPECIAL.cls
    tokens[:, 0], tokens[:, -1] = SPECIAL.cls, SPECIAL.eos
    return tokens


def _corrupt(tokens, lengths=None, seed=0, **config):
    config = CorruptionConfig(**config)
    lengths = np.full(len(tokens), tokens.shape[1], np.int32) if lengths is None else lengths
    index = np.arange(len(tokens), dtype=np.uint32)
    ends = np.arange(VOCABULARY) == SENTENCE_END
    run = functools.partial(corrupt, config=config, special=SPECIAL)
    return jax.device_get(run(jax.random.key(seed), tokens, lengths, index, ends))


def _max_subsequences(row):
    return CorruptionConfig(short_sequence_prob=1.0).max_subsequences(row)


def _cut_plainly(tokens, length, size, is_end):
    """What `split_row` documents, as loops: (token, its column in the raw row) of the cut row, and where it is cut."""
    row, starts, put_in = len(tokens), [0], 0
    for number in range(1, _max_subsequences(row)):
        nominal = int(tokens[0] == SPECIAL.cls) + number * size
        if nominal >= row:
            break
        ends = [i + 1 for i in range(max(nominal - size // 2, 0), nominal) if is_end[i]]
        start = ends[-1] if ends else nominal
        if start + 32 > min(length, row - number):
            break
        starts.append(start)
    text, cuts = [], []
    for number, start in enumerate(starts):
        stop = [*starts[1:], length][number]
        cuts.append(len(text))
        if number and tokens[start] != SPECIAL.cls:
            text.append((SPECIAL.cls, row))
            put_in += 1
        text += [(tokens[i], i) for i in range(start, stop)]
    return text[:row], cuts


@pytest.mark.thorough
def test_cuts_match_plain_loops():
    """Rows of every length, with and without a [CLS], with many ends and few."""
    rng = np.random.default_rng(1)
    row = 160
    tokens = np.concatenate([_rows(200, row, ends, documents) for ends, documents in ((0, 0), (0.1, 0.01), (0.5, 0.1))])
    tokens[::7, 0] = 20
    lengths = rng.integers(0, row + 1, len(tokens)).astype(np.int32)
    lengths[::2] = row
    bits = rng.integers(0, 2**32, len(tokens), dtype=np.uint32)
    is_end = (tokens == SENTENCE_END) | (tokens == SPECIAL.eos)
    enabled = rng.random(len(tokens)) < 0.9
    split = functools.partial(split_row, cls=SPECIAL.cls, max_subsequences=_max_subsequences(row))
    result = jax.device_get(jax.vmap(split)(bits, tokens, lengths, is_end, enabled))
    sizes = 32 + ((bits.astype(np.uint64) * (row - 33)) >> 32).astype(int)
    numbers = set()
    for i in range(len(tokens)):
        text, cuts = _cut_plainly(tokens[i], lengths[i], sizes[i] if enabled[i] else row, is_end[i])
        assert result.length[i] == len(text)
        np.testing.assert_array_equal(result.starts[i][result.starts[i] < UNUSED], cuts)
        np.testing.assert_array_equal(result.tokens[i, : len(text)], [token for token, _ in text])
        np.testing.assert_array_equal(result.origin[i, : len(text)], [place for _, place in text])
        numbers.add(len(cuts))
    assert numbers == {1, 2, 3, 4}


@pytest.mark.thorough
@pytest.mark.parametrize("mixture", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)])
def test_every_subsequence_is_an_example_of_its_own(mixture):
    """Positions begin at 0 in each; Part A and the spans of a subsequence, put together, are its text."""
    tokens = _rows(150, 256, ends=0.08, documents=0.005)
    batch = _corrupt(
        tokens, blank_infilling=mixture[0], sentence=mixture[1], document=mixture[2], short_sequence_prob=0.9
    )
    several = 0
    for i, row in enumerate(tokens):
        prefix, live = batch.prefix_lengths[i], batch.target_weights[i] > 0
        segment = batch.segment_ids[i]
        assert (np.diff(segment[:prefix]) >= 0).all()
        columns, ids, source = (a[i][live] for a in (batch.target_index, batch.target_ids, batch.target_source))
        assert (segment[prefix + live.sum() :] == 0).all()
        seen = []
        for number in range(1, segment[:prefix].max() + 1):
            part_a = np.flatnonzero(segment[:prefix] == number)
            np.testing.assert_array_equal(batch.position_ids[i, part_a], np.arange(len(part_a)))
            assert batch.tokens[i, part_a[0]] == SPECIAL.cls
            mine = segment[columns] == number
            assert mine.any()  # every subsequence is trained on
            blanks = {position: [] for position in sorted(set(batch.position_ids[i, columns[mine]]))}
            for column, token in zip(columns[mine], ids[mine], strict=True):
                blanks[batch.position_ids[i, column]].append(token)
            for position, token in enumerate(batch.tokens[i, part_a]):
                if position in blanks:
                    assert token == SPECIAL.mask
                seen += [t for t in blanks.get(position, [token]) if t not in (SPECIAL.cls, SPECIAL.end, SPECIAL.eos)]
        several += segment[:prefix].max() > 1
        raw = row[~np.isin(row, (SPECIAL.cls, SPECIAL.eos))]
        np.testing.assert_array_equal(seen, raw[: len(seen)])  # in order; only a few fell off the end
        assert len(seen) > len(raw) - _max_subsequences(256)
        inside = source < 256
        np.testing.assert_array_equal(row[source[inside]], ids[inside])  # baselines look back in the raw row
    assert several > 120


@pytest.mark.parametrize(
    ("objective", "options"),
    [("blank_infilling", {}), ("sentence", {}), ("document", {}), ("blank_infilling", {"single_span_prob": 1.0})],
)
@pytest.mark.thorough
def test_subsequences_are_masked_as_rows_of_their_length_are(objective, options):
    """Spans and targets of the subsequences of a cut row against those of uncut rows of their length, in the mean."""
    ends = 0.1 if objective == "sentence" else 0.0
    weights = {"blank_infilling": 0.0, objective: 1.0}
    batch = _corrupt(_rows(600, 256, ends), **weights, **options, short_sequence_prob=1.0)
    by_length = {}  # length of a subsequence -> (spans, targets) of each
    for i in range(600):
        prefix, live = batch.prefix_lengths[i], batch.target_weights[i] > 0
        segment, columns, block = batch.segment_ids[i], batch.target_index[i][live], batch.block_position_ids[i]
        for number in range(1, segment[:prefix].max() + 1):
            mine = columns[segment[columns] == number]
            blanks, ended = (
                (block[mine] == 1).sum(),
                (batch.target_ids[i][live][segment[columns] == number] == SPECIAL.end).sum(),
            )
            length = (segment[:prefix] == number).sum() - blanks + len(mine) - ended
            by_length.setdefault(int(length), []).append((blanks, len(mine) - ended))
    compared = 0
    for length in (40, 64, 100, 128):
        ours = np.array([pair for n in range(length - 5, length + 6) for pair in by_length.get(n, [])])
        if len(ours) < 80:
            continue
        whole = _corrupt(_rows(800, length, ends, seed=9), **weights, **options, seed=5)
        live = whole.target_weights > 0
        blanks = np.array(
            [(b[c[k]] == 1).sum() for b, c, k in zip(whole.block_position_ids, whole.target_index, live, strict=True)]
        )
        theirs = np.stack([blanks, live.sum(1) - ((whole.target_ids == SPECIAL.end) & live).sum(1)], 1)
        error = np.sqrt(ours.var(0) / len(ours) + theirs.var(0) / len(theirs)) + 0.03 * theirs.mean(0)  # lengths differ
        assert (abs(ours.mean(0) - theirs.mean(0)) < 4 * error).all(), (length, ours.mean(0), theirs.mean(0))
        compared += 1
    assert compared >= 2


def test_every_subsequence_has_a_span_however_small_the_documents_ratio():
    """A subsequence without a span would shift the spans of those after it."""
    batch = _corrupt(_rows(400, 256), blank_infilling=0, document=1, document_min_ratio=0.001, short_sequence_prob=1.0)
    for i in range(400):
        columns = batch.target_index[i][batch.target_weights[i] > 0]
        subsequences = set(batch.segment_ids[i, : batch.prefix_lengths[i]])
        assert set(batch.segment_ids[i][columns]) == subsequences
        assert len(subsequences) == 1 + (np.diff(batch.segment_ids[i, : batch.prefix_lengths[i]]) > 0).sum()


@pytest.mark.thorough
def test_a_cut_row_is_full():
    """No work is lost on padding: a cut row keeps as many tokens as a whole one, within a few."""
    tokens = _rows(400, 512, ends=0.05)
    used = [
        (batch.prefix_lengths + (batch.target_weights > 0).sum(1)).mean()
        for batch in (_corrupt(tokens, short_sequence_prob=p) for p in (0.0, 1.0))
    ]
    assert 0.98 < used[1] / used[0] < 1.05


@pytest.mark.parametrize("backend", ["dense", "chunked"])
@pytest.mark.thorough
def test_a_subsequence_does_not_attend_to_its_neighbours(backend):
    """The logits of a subsequence are those of the same text alone in a row."""
    config = GLMConfig(
        vocab_size=VOCABULARY, num_layers=3, hidden_size=32, num_heads=2, max_position_embeddings=200, dtype="float32",
        attention_backend=backend,
    )  # fmt: skip
    params = jax.tree.map(lambda a: a * 4, jax.device_get(jax.tree.map(np.asarray, _unboxed(config))))
    apply = jax.jit(functools.partial(GLM(config).apply, {"params": params}))
    batch = _corrupt(_rows(6, 128, ends=0.1), blank_infilling=1, document=1, short_sequence_prob=1.0)
    inputs = batch.tokens, batch.position_ids, batch.block_position_ids, batch.prefix_lengths, batch.target_index
    together = apply(*inputs, segment_ids=batch.segment_ids)
    mixed = apply(*inputs)
    compared = differ = 0
    for i in range(6):
        live = batch.target_weights[i] > 0
        for number in range(1, batch.segment_ids[i].max() + 1):
            columns = np.flatnonzero(batch.segment_ids[i] == number)
            mine = np.flatnonzero(live & (batch.segment_ids[i][batch.target_index[i]] == number))
            at = np.searchsorted(columns, batch.target_index[i][mine])
            alone = [np.zeros((1, 160), np.int32) for _ in range(3)]
            for row, values in zip(alone, inputs[:3], strict=True):
                row[0, : len(columns)] = values[i, columns]
            prefix = np.array([(columns < batch.prefix_lengths[i]).sum()], np.int32)
            index = np.zeros((1, 128), np.int32)
            index[0, : len(at)] = at
            expected = apply(*alone, prefix, index)[0, : len(at)]
            np.testing.assert_allclose(together[i, mine], expected, atol=2e-5)
            differ += np.abs(mixed[i, mine] - expected).max() > 1e-2
            compared += 1
    assert compared > 10
    assert differ > compared - 3  # without segment ids they would attend to each other


def _unboxed(config):
    import flax.linen as nn

    return nn.unbox(init_params(config, jax.random.key(0)))


@pytest.mark.thorough
def test_visible_pairs_are_counted_by_subsequence():
    batch = _corrupt(_rows(20, 128, ends=0.1), short_sequence_prob=0.8)
    targets = (batch.target_weights > 0).sum(1)
    pairs_a, pairs_b = visible_pairs(batch.prefix_lengths.astype(float), targets.astype(float), batch.segment_ids)
    for i in range(20):
        used = np.arange(batch.prefix_lengths[i] + targets[i])
        segment = batch.segment_ids[i][used]
        seen = visible(batch.prefix_lengths[i], used[:, None], used[None], segment[:, None], segment[None])
        assert seen[: batch.prefix_lengths[i]].sum() == pairs_a[i]
        assert seen[batch.prefix_lengths[i] :].sum() == pairs_b[i]
