"""Schedules, weight-decay groups and clipping against the original; freezing and lr_multipliers."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from glm_jax.training import optimizer
from tests.helpers.paths import GOLDEN

LR = np.load(GOLDEN / "lr_schedules.npz")
STYLES = {
    **dict.fromkeys(("base", "large", "large_chinese", "10B", "10B_chinese", "10B_chinese_longer"), "cosine"),
    **dict.fromkeys(("roberta_large", "10B_longer", "no_warmup_linear"), "linear"),
    **dict.fromkeys(("finetune_superglue", "finetune_seq2seq"), "linear"),
    "constant": "constant",
    "exponential": "exponential",
}


def golden_schedule(run, **options):
    peak, warmup, decay_steps, ratio, _ = LR[f"{run}/args"]
    return optimizer.schedule(STYLES[run], peak, int(decay_steps), float(warmup), ratio, **options), int(decay_steps)


def test_every_golden_schedule_is_checked():
    assert {key.split("/")[0] for key in LR} == set(STYLES)


@pytest.mark.parametrize("run", STYLES)
def test_schedule_equals_original(run, fidelity):
    rate, _ = golden_schedule(run, clamp=False)
    what = "rates, 13 schedules, before and after their end"
    fidelity.close("lr_schedules.npz", what, rate(LR[f"{run}/steps"]), LR[f"{run}/lr"], 1e-16)
    first = np.array([rate(n) for n in range(30)])
    what = "rates of the first 30 optimizer steps"
    fidelity.close("lr_schedules.npz", what, first, LR[f"{run}/lr_first30_optimizer_steps"], 1e-16)
    on_device = jax.jit(rate)(jnp.asarray(LR[f"{run}/steps"], jnp.int32))
    assert on_device.dtype == jnp.float32
    np.testing.assert_allclose(on_device, LR[f"{run}/lr"], rtol=2e-6, atol=2e-10)


@pytest.mark.parametrize("run", [run for run, style in STYLES.items() if style == "linear"])
def test_clamped_linear_differs_only_after_its_end(run):
    rate, decay_steps = golden_schedule(run)
    steps, lr = LR[f"{run}/steps"], LR[f"{run}/lr"]
    within = steps <= decay_steps
    np.testing.assert_allclose(rate(steps[within]), lr[within], rtol=0, atol=1e-16)
    peak, _, _, ratio, _ = LR[f"{run}/args"]
    np.testing.assert_allclose(rate(steps[~within]), peak * ratio, rtol=1e-12)
    assert (~within).any()
    assert (lr[~within] < peak * ratio).all()


def test_schedule_edges():
    assert optimizer.schedule("linear", 1.0, 1)(0) == 1.0  # no warm-up: the first step has the peak
    assert optimizer.schedule("cosine", 1.0, 1, 0.1)(0) == 0.0
    assert optimizer.schedule("cosine", 1.0, 1, 0.1)(1) == pytest.approx(0.1)
    half = optimizer.schedule("linear", 1.0, 10, 5)
    assert [half(n) for n in (0, 1, 5, 10, 11)] == pytest.approx([0, 0.2, 1, 0.1, 0.1])
    rsqrt = optimizer.schedule("inverse_square_root", 1.0, 1000, 100)
    assert [rsqrt(n) for n in (0, 50, 100, 400, 10_000)] == pytest.approx([0, 0.5, 1, 0.5, 0.1])
    assert optimizer.schedule("inverse_square_root", 1.0, 10)(0) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cosin", 1.0, 10), "unknown schedule 'cosin'; choose from cosine"),
        (("cosine", 1.0, 0), "decay_steps = 0"),
        (("cosine", 1.0, 10, 6), "6 steps is more than half of decay_steps = 10"),
        (("cosine", 1.0, 10, 0.6), "more than half"),
        (("cosine", 1.0, 10, 1.0), "fraction below 1"),
        (("cosine", 1.0, 10, -1), "warmup = -1"),
        (("cosine", float("nan"), 10), "peak_lr = nan"),
        (("cosine", 1.0, 10, 0, 1.5), "final_lr_ratio = 1.5"),
    ],
)
def test_schedule_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        optimizer.schedule(*arguments)


def tiny_params(dtype=jnp.float32):
    """Names as in glm_jax (layers stacked), with shapes that are only small."""

    def norm():
        return {"scale": jnp.ones((3, 4), dtype), "bias": jnp.zeros((3, 4), dtype)}

    def dense():
        return {"kernel": jnp.full((3, 4, 4), 0.5, dtype), "bias": jnp.zeros((3, 4), dtype)}

    def table():
        return {"embedding": jnp.full((7, 4), 0.5, dtype)}

    return {
        "word_embeddings": table(),
        "position_embeddings": table(),
        "block_position_embeddings": table(),
        "layers": {
            "input_layernorm": norm(),
            "attention": {"query_key_value": dense(), "dense": dense()},
            "post_attention_layernorm": norm(),
            "mlp": {"dense_h_to_4h": dense(), "dense_4h_to_h": dense()},
        },
        "final_layernorm": norm(),
    }


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def test_decay_groups_equal_original(fidelity):
    groups = json.loads((GOLDEN / "param_groups_A.json").read_text())

    def ours(key):
        *modules, leaf = [part for part in key.split(".") if part != "transformer" and not part.isdigit()]
        if leaf == "weight":
            last = modules[-1]
            leaf = "scale" if "layernorm" in last else "embedding" if "embeddings" in last else "kernel"
        return "/".join([*modules, leaf])

    expected = {ours(key): True for key in groups["weight_decay"]}
    expected |= {ours(key): False for key in groups["no_weight_decay"]}
    fidelity.equal("param_groups_A.json", "both groups", flat(optimizer.decay_mask(tiny_params())), expected)


def test_decay_mask_of_other_names():
    """Relative-position biases and LSTM biases are not named `bias`, so the original decays them."""
    params = {"r_w_bias": 0.0, "lstm": {"bias_ih_l0": 0.0, "bias": 0.0}, "LayerNorm_0": {"scale": 0.0}}
    assert flat(optimizer.decay_mask(params)) == {
        "r_w_bias": True,
        "lstm/bias_ih_l0": True,
        "lstm/bias": False,
        "LayerNorm_0/scale": False,
    }


def test_clip_factor_has_the_epsilon_of_the_original():
    tx = optimizer.clip_by_global_norm(1e-6)
    gradients = {"a": jnp.asarray([3e-6]), "b": jnp.asarray([4e-6])}
    clipped, state = tx.update(gradients, tx.init(gradients))
    np.testing.assert_allclose(state.grad_norm, 5e-6, rtol=1e-6)
    np.testing.assert_allclose(clipped["a"], 3e-6 / 6, rtol=1e-6)  # 1e-6 / (5e-6 + 1e-6), not 1e-6 / 5e-6
    unclipped, state = optimizer.clip_by_global_norm(None).update(gradients, state)
    assert unclipped["a"] == gradients["a"]
    np.testing.assert_allclose(state.grad_norm, 5e-6, rtol=1e-6)
    small, _ = optimizer.clip_by_global_norm(1.0).update(gradients, state)
    assert small["a"] == gradients["a"]


@pytest.mark.parametrize("max_norm", [0, -1.0, float("nan")])
def test_clip_refuses(max_norm):
    with pytest.raises(ValueError, match="None turns clipping off"):
        optimizer.clip_by_global_norm(max_norm)


def run(tx, params, gradients, steps=1):
    state = tx.init(params)
    for _ in range(steps):
        updates, state = jax.jit(tx.update)(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_adamw_by_hand():
    """Equal gradients make Adam's normalised step exactly g / (|g| + eps): the parameters can be computed on paper."""
    params = {"dense": {"kernel": jnp.asarray([2.0, -1.0]), "bias": jnp.asarray([2.0, -1.0])}}
    gradients = jax.tree.map(lambda p: jnp.full_like(p, 0.25), params)
    rate = optimizer.schedule("linear", 0.1, 10, 2)
    tx = optimizer.make_optimizer(params, rate, weight_decay=0.5, eps=1e-2, max_grad_norm=None)
    after, state = run(tx, params, gradients, steps=3)  # rates 0, 0.05, 0.1
    step = 0.25 / 0.26
    bias = np.asarray([2.0, -1.0]) - (0.05 + 0.1) * step
    kernel = np.asarray([2.0, -1.0])
    for lr in (0.0, 0.05, 0.1):
        kernel = kernel - lr * (step + 0.5 * kernel)
    np.testing.assert_allclose(after["dense"]["bias"], bias, rtol=1e-5)
    np.testing.assert_allclose(after["dense"]["kernel"], kernel, rtol=1e-5)
    measured = optimizer.metrics(state, grads=None)
    assert measured["learning_rate"] == jnp.float32(0.1)
    assert measured["grad_norm"] == 0.5


def test_first_update_of_a_warmup_changes_nothing():
    params = tiny_params()
    tx = optimizer.make_optimizer(params, optimizer.schedule("cosine", 1.0, 100, 0.1))
    after, state = run(tx, params, jax.tree.map(jnp.ones_like, params))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, after))
    assert optimizer.metrics(state, grads=None)["learning_rate"] == 0


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_multipliers_and_freezing(name):
    params = tiny_params()
    gradients = jax.tree.map(jnp.ones_like, params)
    settings = {"name": name, "weight_decay": 0.1, "max_grad_norm": None}
    plain, _ = run(optimizer.make_optimizer(params, 0.01, **settings), params, gradients)
    tx = optimizer.make_optimizer(
        params,
        0.01,
        **settings,
        lr_multipliers=[("layers/mlp/dense_4h_to_h/.*", 1.0), ("layers/mlp/.*", 0.5), (".*embeddings/.*", 0)],
    )
    after, state = run(tx, params, gradients)
    before, plain, after = flat(params), flat(plain), flat(after)
    for key, value in after.items():
        factor = 0 if "embeddings" in key else 0.5 if "dense_h_to_4h" in key else 1
        np.testing.assert_allclose(value - before[key], factor * (plain[key] - before[key]), atol=1e-7, err_msg=key)
        assert factor == 0 or (value != before[key]).all()
    assert not any("embeddings" in key for key in flat(state))  # frozen parameters have no moments
    trained = sum(value.size for key, value in before.items() if "embeddings" not in key)
    np.testing.assert_allclose(optimizer.metrics(state, grads=None)["grad_norm"], trained**0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("lr_multipliers", "message"),
    [
        ([("layers/mlps/.*", 0.5)], "'layers/mlps/.\\*' decides about no parameter.*layers/mlp/"),
        ([("layers/.*", 0.5), ("layers/mlp/.*", 0)], "'layers/mlp/.\\*' decides about no parameter"),
        ([("mlp", 0.5)], "whole names must match"),
        ([(".*", 0)], "nothing to train"),
        ([(".*", -1.0)], "not negative"),
    ],
)
def test_multipliers_refuse(lr_multipliers, message):
    with pytest.raises(ValueError, match=message):
        optimizer.make_optimizer(tiny_params(), 0.01, lr_multipliers=lr_multipliers)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"name": "adam"}, "adamw"), ({"b2": 1.0}, "b2 = 1.0"), ({"weight_decay": -0.1}, "weight_decay = -0.1")],
)
def test_make_optimizer_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        optimizer.make_optimizer(tiny_params(), 0.01, **settings)


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_moments_are_float32(name):
    params = tiny_params()
    state = optimizer.make_optimizer(params, 0.01, name=name).init(params)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state)} <= {"float32", "int32"}
    with pytest.raises(ValueError, match=r"bfloat16.*must be float32"):
        optimizer.make_optimizer(params, 0.01, name=name).init(tiny_params(jnp.bfloat16))


def test_accepts_boxed_parameters():
    boxed = jax.tree.map(lambda p: nn.LogicallyPartitioned(p, (None,) * p.ndim), tiny_params())
    tx = optimizer.make_optimizer(boxed, 0.01, lr_multipliers=[("word_embeddings/.*", 0), ("layers/mlp/.*", 0.5)])
    gradients = jax.tree.map(jnp.ones_like, boxed)
    from_boxed, _ = run(tx, boxed, gradients)
    from_plain, _ = run(tx, nn.unbox(boxed), nn.unbox(gradients))
    jax.tree.map(np.testing.assert_array_equal, nn.unbox(from_boxed), from_plain)
