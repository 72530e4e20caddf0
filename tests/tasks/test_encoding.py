"""What the model reads, against the original's three builders."""

import numpy as np
import pytest

from glm_jax.tasks.batch import collate
from glm_jax.tasks.encoding import encode_candidates, encode_example, in_place, pack
from glm_jax.tasks.errors import TaskError
from tests.helpers.golden_tasks import TOY, assert_equal, load
from tests.reference.task_rows import cloze_input, last_blank, unidirectional_input

RECORDS = {record["name"]: record for record in load("input_builders.json")}


@pytest.mark.parametrize("name", RECORDS)
def test_golden(name, fidelity):
    record = RECORDS[name]
    given = record["kwargs"]
    if name == "uni":
        encoded = unidirectional_input(TOY, given["text_a_ids"], given["answer_ids"], mask=given["mask_id"])
    else:
        encoded = cloze_input(
            TOY,
            given["text_a_ids"],
            given["text_b_ids"],
            given["answer_ids"],
            max_length=given["max_seq_length"],
            separator=4 if given["add_sep"] else None,
            add_cls=given["add_cls"],
            add_piece=given["add_piece"],
            add_eos=given.get("add_eos", True),
        )
    assert_equal(encoded, record, pad=TOY.eos)
    fidelity.compared("input_builders.json", "inputs of all builders")


def test_several_blanks_and_several_candidates():
    """Two blanks of one text see each other; two candidates for one blank do not."""
    context = [1, 20, 2, 21, 2, 0]
    row = encode_example(5, context, [2, 4], [[30, 31, 6], [40, 6]])
    assert row.tokens[6:] == [5, 30, 31, 5, 40]
    assert row.position_ids[6:] == [2, 2, 2, 4, 4]
    assert row.block_position_ids[6:] == [1, 2, 3, 1, 2]
    assert row.target_index == (6, 7, 8, 9, 10)
    assert row.target_ids == (30, 31, 6, 40, 6)
    assert row.segment_ids == [0] * 6 + [1, 1, 1, 1, 1]
    assert row.blanks == (2, 4)
    flat = encode_example(5, context, [2], [[30, 31, 6]], block_positions=False)
    assert flat.block_position_ids[6:] == [1, 1, 1]
    (row,) = encode_candidates(5, context, 2, [[30, 31, 6], [30, 40, 6]], given=1)
    assert row.tokens[6:] == [5, 30, 31, 5, 30, 40]
    assert row.position_ids[6:] == [2] * 6
    assert row.segment_ids == [0] * 6 + [1, 1, 1, 2, 2, 2]
    assert (row.target_index, row.target_ids) == ((7, 8, 10, 11), (31, 6, 40, 6))
    assert (row.target_candidate, row.candidates) == ((0, 0, 1, 1), (0, 1))
    (single,) = encode_candidates(5, context, 2, [[30], [31]], single_token=True)
    assert single.tokens[6:] == [5]
    assert (single.target_index, single.target_ids, single.target_candidate) == ((6, 6), (30, 31), (0, 1))


def test_packed_rows_hold_their_examples_side_by_side():
    rows = [encode_example(5, [1, 2, 0], [1], [[30, 6]]), encode_example(5, [1, 7, 2, 0], [2], [[31, 32, 6]], given=1)]
    row = pack(rows)
    assert row.tokens == [1, 2, 0, 1, 7, 2, 0, 5, 30, 5, 31, 32]
    assert row.position_ids == [0, 1, 2, 0, 1, 2, 3, 1, 1, 2, 2, 2]
    assert row.segment_ids == [1, 1, 1, 2, 2, 2, 2, 1, 1, 2, 2, 2]
    assert row.prefix_length == 7
    assert row.blanks == (1, 5)
    assert row.target_index == (7, 8, 10, 11)
    assert row.target_ids == (30, 6, 32, 6)
    with pytest.raises(TaskError, match="with several candidates for a blank, or with soft prompts, needs a row of"):
        pack(encode_candidates(5, [1, 2, 0], 1, [[30, 6], [31, 6]]))


def test_collate():
    rows = [
        encode_example(5, [1, 2, 0], [1], [[30, 31, 6]], given=1),
        encode_example(5, [1, 2, 21, 0], [1], [[9]]),
    ]
    batch = collate(rows, pad=99, segments=True)
    np.testing.assert_array_equal(batch.tokens, [[1, 2, 0, 5, 30, 31], [1, 2, 21, 0, 5, 99]])
    np.testing.assert_array_equal(batch.prefix_lengths, [3, 4])
    np.testing.assert_array_equal(batch.target_index, [[4, 5], [4, 0]])
    np.testing.assert_array_equal(batch.target_ids, [[31, 6], [9, 0]])
    np.testing.assert_array_equal(batch.target_weights, [[1, 1], [1, 0]])
    np.testing.assert_array_equal(batch.segment_ids, [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 0]])
    assert batch.labels.tolist() == [-1, -1]
    assert batch.prompt_columns is None
    wide = collate(rows, pad=99, length=9, num_targets=4)
    assert wide.tokens.shape == (2, 9)
    assert wide.target_ids.shape == (2, 4)


def test_errors():
    row = encode_example(5, [1, 2, 0], [1], [[30, 31, 6]])
    (choice,) = encode_candidates(5, [1, 2, 0], 1, [[30, 6], [31, 6]])
    (prompted,) = encode_candidates(5, [1, 2, 0], 1, [[30, 6]], prompt_columns=(0,))
    with pytest.raises(TaskError, match="6 tokens does not fit rows of 5"):
        collate([row], pad=0, length=5)
    with pytest.raises(TaskError, match="3 targets does not fit 2"):
        collate([row], pad=0, num_targets=2)
    with pytest.raises(TaskError, match="2 candidates does not fit 1"):
        collate([choice], pad=0, num_candidates=1)
    with pytest.raises(TaskError, match="the same number of soft prompt tokens"):
        collate([row, prompted], pad=0)
    with pytest.raises(TaskError, match="no rows"):
        collate([], pad=0)
    with pytest.raises(TaskError, match="no blank is left in a context of 2"):
        last_blank([1, 3], 2)
    with pytest.raises(TaskError, match="no blank is left"):
        cloze_input(TOY, [21, 22, 23, 24, 2], max_length=4)
    with pytest.raises(TaskError, match="without tokens"):
        encode_example(5, [1, 2], [1], [[]])
    with pytest.raises(TaskError, match="column 3"):
        encode_example(5, [1, 2], [3], [[4]])


def test_a_model_without_part_b_has_masks_in_the_place_of_the_blank():
    context = [1, 20, 2, 21, 0]
    (row,) = encode_candidates(5, context, 2, [[30, 6], [40, 41, 42, 6]], prompt_columns=(1, 3))
    (placed,) = in_place([row], mask=2, end=6)
    assert placed.tokens == [1, 20, 2, 2, 2, 2, 21, 0]
    assert placed.position_ids == list(range(8))
    assert (placed.prefix_length, placed.block_position_ids, placed.segment_ids) == (8, [0] * 8, [0] * 8)
    assert placed.target_index == (2, 3, 4, 5) * 2
    assert placed.target_ids == (30, 6, 6, 6, 40, 41, 42, 6)
    assert placed.target_candidate == (0,) * 4 + (1,) * 4
    assert (placed.candidates, placed.prompt_columns) == ((0, 1), (1, 6))
    (single,) = in_place(encode_candidates(5, context, 2, [[30], [31]], single_token=True), 2, 6)
    assert (single.tokens, single.target_index, single.target_ids) == (context, (2, 2), (30, 31))
    (answer,) = in_place([encode_example(5, context, [2], [[30, 6]])], 2, 6, length=3)
    assert answer.tokens == [1, 20, 2, 2, 2, 21, 0]
    assert answer.target_ids == (30, 6, 6)
    # Rows of one example have the same number of masks, so that their candidates compare.
    rows = encode_candidates(5, context, 2, [[30, 6], [40, 41, 42, 6]], row_length=9)
    assert [len(row.blanks) for row in in_place(rows, 2, 6)] == [4, 4]
    with pytest.raises(TaskError, match="an answer of 4 tokens does not fit 3 masks"):
        in_place(rows, 2, 6, length=3)
    with pytest.raises(TaskError, match="2 blanks in one text"):
        in_place([encode_example(5, [1, 2, 20, 2, 0], [1, 3], [[30], [31]])], 2, 6)
