"""Models of other layouts learn the tasks that GLM learns: by a prompt, by a head, by writing."""

import dataclasses

import jax
import numpy as np
import pytest

from glm_jax.tasks.batch import collate
from glm_jax.tasks.encoding import encode_example, in_place
from glm_jax.tuning.losses import partly_masked
from glm_jax.tuning.train import train
from tests.helpers import tiny_run, tuning_runs

OBJECTIVES = {
    "causal_lm": "causal",
    "prefix_lm": "prefix",
    "fill_in_the_middle": "causal",
    "masked_diffusion": "masked",
}


@pytest.fixture(scope="module")
def pretrained(place):
    """Objective -> a run of two steps."""
    folders = {}
    for objective, layout in OBJECTIVES.items():
        folders[objective] = place / objective
        changes = {"corruption__baseline": objective, "model__layout": layout, "train_duration": "2 steps"}
        result = train(tiny_run.config(place, eval_every="2 steps", **changes), str(folders[objective]))
        assert result["step"] == 2
    return folders


@pytest.mark.thorough
@pytest.mark.parametrize("objective", ["causal_lm", "prefix_lm", "masked_diffusion"])
def test_every_kind_of_task_is_learned(place, pretrained, tmp_path, objective):
    start = {
        "init_from": str(pretrained[objective]),
        "train_duration": "20 epochs",
        "schedule__peak_lr": 5e-3,
        "eval_every": "20 epochs",
    }
    pairs = f"pairs:{place}"
    runs = {
        "prompt": ((), {}),
        "head": ((), {"head": "classifier", "pool": "pad"}),
        "writing": ((pairs,), {}),
    }
    for name, (tasks, changes) in runs.items():
        losses = []
        train(
            tuning_runs.config(place, *tasks, **start, **changes),
            str(tmp_path / name),
            on_log=lambda step, values, losses=losses: losses.append(values["loss"]) if "loss" in values else None,
        )
        assert np.mean(losses[-9:]) < 0.9 * np.mean(losses[:3]), (name, losses)


@pytest.mark.thorough
def test_what_a_layout_cannot_learn_is_refused(place, pretrained, tmp_path):
    causal = {"init_from": str(pretrained["causal_lm"])}
    with pytest.raises(ValueError, match="pool 'cls': the first token of a causal model has seen nothing else"):
        train(tuning_runs.config(place, head="classifier", **causal), str(tmp_path / "a"))
    with pytest.raises(ValueError, match="rows of a causal model hold one example each"):
        train(tuning_runs.config(place, f"pairs:{place}", packed_length=32, **causal), str(tmp_path / "b"))
    middle = {"corruption__baseline": "fill_in_the_middle", "model__max_position_embeddings": 48}
    with pytest.raises(ValueError, match="position_ids reach from 50 to 50, but the table holds positions 0 to 47"):
        train(tiny_run.config(place, model__layout="causal", **middle), str(tmp_path / "d"))
    with pytest.raises(ValueError, match=r"set model.layout = 'glm'"):
        train(tiny_run.config(place, model__layout="causal"), str(tmp_path / "c"))


def test_a_random_part_of_an_answer_is_masked():
    rows = [in_place([encode_example(5, [1, 20, 2, 21], [2], [[*range(30, 39), 6]])], 2, 6)[0]] * 400
    rows += [in_place([encode_example(5, [1, 20, 2, 21], [2], [[30, 6]])], 2, 6)[0]] * 2
    batch = collate(rows, pad=0).replace(index=np.arange(len(rows), dtype=np.uint32))
    part = jax.device_get(jax.jit(partly_masked)(batch))
    masked = part.tokens == 2
    counts = masked.sum(1)
    np.testing.assert_array_equal(counts, (part.target_weights > 0).sum(1))
    np.testing.assert_allclose(part.target_weights.sum(1), [10] * 400 + [2] * 2, rtol=1e-5)
    np.testing.assert_allclose(np.bincount(counts[:400], minlength=11)[1:] / 400, 0.1, atol=0.05)
    for row in range(len(rows)):
        shown = ~masked[row, batch.target_index[row]] & (batch.target_weights[row] > 0)
        np.testing.assert_array_equal(part.tokens[row, batch.target_index[row]][shown], batch.target_ids[row][shown])
        assert part.tokens[row, 0] == 1
    again = jax.device_get(jax.jit(partly_masked)(jax.tree.map(lambda a: a[7:9], dataclasses.replace(batch))))
    np.testing.assert_array_equal(again.tokens, part.tokens[7:9])  # the example's number decides, not the batch
