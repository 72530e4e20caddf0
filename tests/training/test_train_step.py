"""The optimizer step against the original's, and against itself under other splits of the batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from glm_jax.corruption.config import CorruptionConfig
from glm_jax.distributed.sharding import unbox
from glm_jax.model import batch as batch_lib
from glm_jax.model.batch import Batch
from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import GLM
from glm_jax.training import optimizer
from glm_jax.training.train_step import (
    TokenRows,
    TrainState,
    blank_infilling,
    init_state,
    make_corrupt,
    make_eval_step,
    make_train_step,
)
from tests.helpers.corruption_records import SPECIAL
from tests.helpers.golden_params import from_state_dict
from tests.helpers.paths import GOLDEN

CONFIG_A = GLMConfig(
    vocab_size=128, num_layers=3, hidden_size=64, num_heads=4, max_position_embeddings=64, hidden_dropout=0.0,
    attention_dropout=0.0, dtype="float32",
)  # fmt: skip


def test_twelve_steps_equal_the_original(fidelity):
    """Losses, gradient norms, rates and the final parameters of the original's AdamW run."""
    golden = np.load(GOLDEN / "train_steps_A.npz")
    rate = optimizer.schedule("cosine", 4e-3, 20, warmup=0.1, final_lr_ratio=0.05)
    params = from_state_dict(dict(np.load(GOLDEN / "ckpt_A.npz")), CONFIG_A.num_heads)
    tx = optimizer.make_optimizer(params, rate, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.1, max_grad_norm=1.0)
    batches = {name: golden[name] for name in ("input_ids", "position_ids", "sep", "target", "loss_mask")}
    width = batches["input_ids"].shape[-1]

    def as_batch(number):
        ids = batches["input_ids"][number]
        everywhere = np.broadcast_to(np.arange(width, dtype=np.int32), ids.shape)
        return Batch(
            tokens=ids.astype(np.int32),
            position_ids=batches["position_ids"][number][:, 0].astype(np.int32),
            block_position_ids=batches["position_ids"][number][:, 1].astype(np.int32),
            prefix_lengths=batches["sep"].astype(np.int32),
            target_index=everywhere,
            target_ids=batches["target"][number].astype(np.int32),
            target_weights=batches["loss_mask"][number].astype(np.float32),
            target_source=np.zeros_like(everywhere),
            objective=np.zeros(len(ids), np.int32),
        )

    # The golden batches are corrupted already: the rows carry their number, and "corruption" looks them up.
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *map(as_batch, range(12)))
    objective = blank_infilling(GLM(CONFIG_A), lambda rows: jax.tree.map(lambda x: x[rows.index[0]], stacked))
    step = make_train_step(GLM(CONFIG_A), tx, objective, seed=0)
    step = jax.jit(step)
    state = TrainState(step=jnp.int32(0), params=params, opt_state=tx.init(params))
    for number in range(12):
        rows = TokenRows(jnp.zeros((4, width), jnp.int32), jnp.full(4, width), jnp.full(4, number, jnp.uint32))
        state, metrics = step(state, rows)
        for ours, theirs, tolerance in (("loss", "loss", 1e-5), ("grad_norm", "grad_norm", 1e-4)):
            what = f"{theirs} of each step"
            fidelity.close("train_steps_A.npz", what, metrics[ours], golden[theirs][number], tolerance, relative=True)
        fidelity.close("train_steps_A.npz", "rate of each step", metrics["learning_rate"], golden["lr"][number], 1e-8)
    final = {name.removeprefix("final/"): golden[name] for name in golden.files if name.startswith("final/")}
    expected = from_state_dict(final, CONFIG_A.num_heads)
    fidelity.close("train_steps_A.npz", "parameters after the last step", state.params, expected, 1e-5)


@pytest.fixture(scope="module")
def small():
    config = GLMConfig(
        vocab_size=1024, num_layers=2, hidden_size=32, num_heads=2, max_position_embeddings=64, hidden_dropout=0.0,
        attention_dropout=0.0, dtype="float32",
    )  # fmt: skip
    model = GLM(config)
    tx = optimizer.make_optimizer(
        jax.eval_shape(lambda: init_state(model, optax.identity(), jax.random.key(0)).params), 1e-2
    )
    ends = np.arange(1024) % 17 == 0
    corruption = CorruptionConfig(sentence=0.5, document=0.5, task_masks=True)
    return model, tx, make_corrupt(3, corruption, SPECIAL, ends)


def _rows(count, step, seed=0):
    rng = np.random.default_rng(seed + step)
    tokens = rng.integers(20, 1000, (count, 48)).astype(np.int32)
    tokens[:, 0], tokens[:, -1] = SPECIAL.cls, SPECIAL.eos
    return TokenRows(tokens, np.full(count, 48, np.int32), np.arange(step * count, (step + 1) * count, dtype=np.uint32))


@pytest.mark.parametrize("pieces", [1, 4])
@pytest.mark.thorough
def test_a_batch_and_any_optax_optimizer_make_a_step(small, pieces):
    """As in a loop of one's own: loss and gradient are those of the run's step on the rows behind the batch."""
    model, run_tx, corrupt_rows = small
    params = unbox(init_state(model, optax.identity(), jax.random.key(1)).params)
    rows, tx = _rows(8, 0), optax.adamw(1e-2)
    _, expected = jax.jit(make_train_step(model, run_tx, blank_infilling(model, corrupt_rows)))(
        TrainState.create(params, run_tx), rows
    )
    step = jax.jit(make_train_step(model, tx, grad_accumulation_steps=pieces))
    state, metrics = step(TrainState.create(params, tx), jax.jit(corrupt_rows)(rows))
    assert set(metrics) == {"loss", "grad_norm", "sums"}
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], expected["grad_norm"], rtol=1e-4)
    np.testing.assert_allclose(metrics["sums"].weight, expected["sums"].weight.sum(), rtol=1e-6)
    assert state.step == 1
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), params, state.params)
    assert min(jax.tree.leaves(moved)) > 0


@pytest.mark.thorough
def test_accumulation_changes_nothing(small):
    """Token-weighted: the same losses and parameters as the whole batch at once, though targets differ in number."""
    model, tx, corrupt_rows = small
    whole = unbox(init_state(model, tx, jax.random.key(1)))
    parts = jax.tree.map(jnp.copy, whole)
    one = jax.jit(make_train_step(model, tx, blank_infilling(model, corrupt_rows), seed=3))
    many = jax.jit(make_train_step(model, tx, blank_infilling(model, corrupt_rows), seed=3, grad_accumulation_steps=4))
    for step in range(3):
        whole, expected = one(whole, _rows(8, step))
        parts, metrics = many(parts, _rows(8, step))
        np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], expected["grad_norm"], rtol=1e-4)
        np.testing.assert_array_equal(metrics["sums"].weight, expected["sums"].weight)


@pytest.mark.thorough
def test_a_micro_batch_is_corrupted_as_in_the_whole_batch(small):
    _, _, corrupt_rows = small
    whole = corrupt_rows(_rows(8, 0))
    for micro in range(4):
        part = corrupt_rows(jax.tree.map(lambda x, m=micro: x[m::4], _rows(8, 0)))
        jax.tree.map(lambda a, b, m=micro: np.testing.assert_array_equal(a[m::4], b), whole, part)


@pytest.fixture(scope="module")
def pack_objectives(small):
    """A mixture of five examples a row, with short sequences, so that slots also hold segments."""
    model, tx, _ = small
    corruption = CorruptionConfig(
        0.4, 0.2, 0.4, pack_objectives=True, task_masks=True, single_span_prob=0.1, short_sequence_prob=0.3
    )
    ends = np.arange(1024) % 17 == 0
    return model, tx, corruption, ends


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.thorough
def test_examples_side_by_side_are_learned_as_if_alone(pack_objectives, scan):
    """Losses of every example, sums by objective, and gradients."""
    small, tx, corruption, ends = pack_objectives
    model = GLM(dataclasses.replace(small.config, scan_layers=scan))
    rows = _rows(10, 0)
    params = unbox(init_state(model, tx, jax.random.key(1))).params
    slots = corruption.slots()
    assert [slot.mixture.index(1.0) for slot in slots] == [0, 0, 1, 2, 2]

    def alone(params):
        total, sums = 0.0, None
        for number, slot in enumerate(slots):
            objective = blank_infilling(model, make_corrupt(3, slot, SPECIAL, ends))
            found, own = objective(params, jax.tree.map(lambda x, n=number: x[n::5], rows), score=True)
            total, sums = total + found, own if sums is None else jax.tree.map(jnp.add, sums, own)
        return total, sums

    def together(params):
        return blank_infilling(model, make_corrupt(3, corruption, SPECIAL, ends))(params, rows, score=True)

    (expected, expected_sums), expected_grads = jax.jit(jax.value_and_grad(alone, has_aux=True))(params)
    (found, sums), grads = jax.jit(jax.value_and_grad(together, has_aux=True))(params)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), sums, expected_sums)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), grads, expected_grads)
    assert (np.asarray(sums.weight)[:, 0] > 0).all()


@pytest.mark.thorough
def test_examples_side_by_side_stay_together_in_micro_batches(pack_objectives):
    model, tx, corruption, ends = pack_objectives
    objective = blank_infilling(model, make_corrupt(3, corruption, SPECIAL, ends))
    state = unbox(init_state(model, tx, jax.random.key(1)))
    _, expected = jax.jit(make_train_step(model, tx, objective, seed=3, together=5))(state, _rows(20, 0))
    _, metrics = jax.jit(make_train_step(model, tx, objective, seed=3, together=5, grad_accumulation_steps=4))(
        state, _rows(20, 0)
    )
    np.testing.assert_allclose(metrics["grad_norm"], expected["grad_norm"], rtol=1e-4)
    np.testing.assert_array_equal(metrics["sums"].weight, expected["sums"].weight)


@pytest.mark.thorough
def test_dropout_differs_by_lane(pack_objectives):
    """Two equal examples side by side: attention drops different keys of each."""
    model, tx, _, ends = pack_objectives
    noisy = GLM(dataclasses.replace(model.config, attention_dropout=0.5))
    params = unbox(init_state(model, tx, jax.random.key(1))).params
    batch = make_corrupt(3, CorruptionConfig(), SPECIAL, ends)(_rows(1, 0))
    twice = batch_lib.pack_objectives([batch, batch])
    inputs = twice.tokens, twice.position_ids, twice.block_position_ids, twice.prefix_lengths
    apply = functools.partial(noisy.apply, {"params": params}, *inputs, slots=twice.slots, head=False)
    one, other = np.split(np.asarray(apply(deterministic=False, rngs={"dropout": jax.random.key(0)})), 2, axis=1)
    assert np.abs(one - other).max() > 1e-3
    one, other = np.split(np.asarray(apply()), 2, axis=1)
    np.testing.assert_allclose(one, other, atol=1e-6)
    with pytest.raises(ValueError, match="must add up"):
        noisy.apply({"params": params}, *inputs, slots=twice.slots[:1])


@pytest.mark.thorough
def test_padding_rows_count_nothing(small):
    model, tx, corrupt_rows = small
    params = unbox(init_state(model, tx, jax.random.key(1))).params
    evaluate = jax.jit(make_eval_step(blank_infilling(model, corrupt_rows)))
    rows = _rows(8, 0)
    some = evaluate(params, jax.tree.map(lambda x: x[:5], rows))
    padded = evaluate(params, rows.replace(lengths=np.where(np.arange(8) < 5, rows.lengths, 0)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), some, padded)


@pytest.mark.thorough
def test_dropout_differs_by_step_and_micro_batch(small):
    model, tx, corrupt_rows = small
    noisy = GLM(GLMConfig(**{**vars(model.config), "hidden_dropout": 0.3}))
    state = unbox(init_state(noisy, tx, jax.random.key(1)))
    frozen = jax.jit(make_train_step(noisy, tx, blank_infilling(noisy, corrupt_rows), seed=3))
    _, first = frozen(state, _rows(8, 0))
    _, again = frozen(state, _rows(8, 0))
    _, later = frozen(state.replace(step=jnp.int32(5)), _rows(8, 0))
    assert first["loss"] == again["loss"]
    assert first["loss"] != later["loss"]
