"""What the model reads, against the original's three builders."""

import numpy as np
import pytest

from glm_jax.tasks.encoding import Answer, cloze_input, collate, encode_example, last_blank, unidirectional_input
from glm_jax.tasks.errors import TaskError
from tests.helpers.golden_tasks import TOY, assert_equal, load

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


def test_blocks_and_groups():
    """Two blanks of one text see each other; two candidates for one blank do not, and start over."""
    context = [1, 20, 2, 21, 2, 0]
    rows = encode_example(5, context, [Answer(2, [30, 31, 6]), Answer(4, [40, 6], group=2)])
    assert rows.tokens[6:] == [5, 30, 31, 5, 40]
    assert rows.position_ids[6:] == [2, 2, 2, 4, 4]
    assert rows.block_position_ids[6:] == [1, 2, 3, 1, 2]
    assert rows.target_ids[6:] == [30, 31, 6, 40, 6]
    assert rows.segment_ids == [0] * 6 + [1, 1, 1, 2, 2]
    flat = encode_example(5, context, [Answer(2, [30, 31, 6])], block_positions=False)
    assert flat.block_position_ids[6:] == [1, 1, 1]


def test_collate():
    rows = [
        encode_example(5, [1, 2, 0], [Answer(1, [30, 31, 6], known=1)]),
        encode_example(5, [1, 2, 21, 0], [Answer(1, [9])]),
    ]
    batch = collate(rows, pad=99, segments=True)
    np.testing.assert_array_equal(batch.tokens, [[1, 2, 0, 5, 30, 31], [1, 2, 21, 0, 5, 99]])
    np.testing.assert_array_equal(batch.prefix_lengths, [3, 4])
    np.testing.assert_array_equal(batch.target_index, [[4, 5], [4, 0]])
    np.testing.assert_array_equal(batch.target_ids, [[31, 6], [9, 0]])
    np.testing.assert_array_equal(batch.target_weights, [[1, 1], [1, 0]])
    np.testing.assert_array_equal(batch.segment_ids, [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 0]])
    wide = collate(rows, pad=99, length=9, num_targets=4)
    assert wide.tokens.shape == (2, 9)
    assert wide.target_ids.shape == (2, 4)


def test_errors():
    row = encode_example(5, [1, 2, 0], [Answer(1, [30, 31, 6])])
    with pytest.raises(TaskError, match="6 tokens does not fit rows of 5"):
        collate([row], pad=0, length=5)
    with pytest.raises(TaskError, match="3 targets does not fit 2"):
        collate([row], pad=0, num_targets=2)
    with pytest.raises(TaskError, match="no rows"):
        collate([], pad=0)
    with pytest.raises(TaskError, match="no blank is left in a context of 2"):
        last_blank([1, 3], 2)
    with pytest.raises(TaskError, match="no blank is left"):
        cloze_input(TOY, [21, 22, 23, 24, 2], max_length=4)
    with pytest.raises(TaskError, match="without tokens"):
        encode_example(5, [1, 2], [Answer(1, [])])
    with pytest.raises(TaskError, match="column 3"):
        encode_example(5, [1, 2], [Answer(3, [4])])
