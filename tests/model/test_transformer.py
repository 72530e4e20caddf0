"""The model against the original's numbers, and its structure through gradients."""

import dataclasses
import functools
import json
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.distributed.sharding import unbox
from glm_jax.model.config import GLMConfig, check_lengths
from glm_jax.model.losses import cross_entropy
from glm_jax.model.transformer import GLM, init_params, parameter_count
from glm_jax.model.transformer_layer import Layer, LayerInputs
from tests.helpers.golden_params import from_state_dict
from tests.helpers.paths import GOLDEN

SHAPES = {  # of the golden models: vocabulary, layers, width, heads, positions
    "A": GLMConfig(128, 3, 64, 4, 64, dtype="float32"),
    "B": GLMConfig(112, 2, 48, 3, 40, dtype="float32"),
}


def load(name):
    with np.load(GOLDEN / name) as file:
        return {k: a.astype(np.int32) if a.dtype == np.int64 else a for k, a in file.items()}


@functools.partial(
    jax.jit, static_argnums=0, static_argnames=("deterministic", "head", "output_hidden_states", "output_attentions")
)
def apply(config, params, *batch, seed=0, **options):
    key = jax.random.key(seed, impl="rbg")  # compiles many times faster on CPU than threefry
    return GLM(config).apply({"params": params}, *batch, rngs={"dropout": key}, **options)


def inputs(golden):
    return golden["input_ids"], golden["position_ids"][:, 0], golden["position_ids"][:, 1], golden["sep"]


@pytest.fixture(scope="module", params=["A", "B"])
def golden(request):
    config = SHAPES[request.param]
    params = from_state_dict(load(f"ckpt_{request.param}.npz"), config.num_heads)
    return config, params, load(f"forward_{request.param}.npz")


@pytest.fixture(scope="module")
def tiny():
    """A model, parameters that all matter, and a batch with three prefix lengths."""
    config, rng = SHAPES["A"], np.random.default_rng(0)
    params = from_state_dict(load("ckpt_A.npz"), config.num_heads)
    tokens = np.stack([rng.permutation(config.vocab_size)[:12] for _ in range(3)]).astype(np.int32)
    positions = np.tile(np.arange(12, dtype=np.int32), (3, 1))
    return config, params, (tokens, positions, positions // 2, np.array([7, 0, 12], np.int32))


def golden_file(config):
    return f"forward_{next(name for name, shape in SHAPES.items() if shape.num_heads == config.num_heads)}.npz"


def largest_error(actual, expected):
    """Over all leaves, the largest difference relative to the leaf's largest entry."""
    errors = jax.tree.map(lambda a, b: float(np.abs(a - b).max() / np.abs(b).max()), actual, expected)
    return max(jax.tree.leaves(errors))


# --- the original's numbers


@pytest.mark.parametrize("scan", [True, False])
def test_logits_of_the_original(golden, scan, fidelity):
    config, params, arrays = golden
    config = dataclasses.replace(config, scan_layers=scan)
    logits = apply(config, params, *inputs(arrays))
    fidelity.close(golden_file(config), "logits", logits, arrays["logits"], 1e-5)


def test_other_outputs_of_the_original(golden, fidelity):
    config, params, arrays = golden
    *ids, prefix = inputs(arrays)
    hidden = apply(config, params, *ids, prefix, head=False)
    fidelity.close(golden_file(config), "hidden states before the head", hidden, arrays["final_hidden"], 1e-5)
    logits = apply(config, params, *ids, np.full_like(prefix, arrays["scalar_sep"]))
    fidelity.close(golden_file(config), "logits, one prefix for all rows", logits, arrays["logits_scalar_sep"], 1e-5)


def golden_loss(config, arrays, target_index=None):
    def loss(params):
        logits = apply(config, params, *inputs(arrays), target_index)
        targets, weights = arrays["target"], arrays["loss_mask"].astype(np.float32)
        if target_index is not None:
            targets = np.take_along_axis(targets, target_index, 1)
            weights = np.take_along_axis(weights, target_index, 1)
        total, count = cross_entropy(logits, jnp.asarray(targets), jnp.asarray(weights))
        return total / count

    return loss


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("targets_only", [False, True])
def test_loss_and_gradients_of_the_original(golden, remat, targets_only, fidelity):
    config, params, arrays = golden
    config = dataclasses.replace(config, remat=remat, scan_layers=remat == "full")
    target_index = None
    if targets_only:  # positions with weight first; the rest is filled with positions of weight 0
        count = int(arrays["loss_mask"].sum(1).max())
        target_index = np.argsort(-arrays["loss_mask"], axis=1, kind="stable")[:, :count].astype(np.int32)
    loss, gradients = jax.jit(jax.value_and_grad(golden_loss(config, arrays, target_index)))(params)
    fidelity.close(golden_file(config), "loss of the model", loss, arrays["loss"], 1e-5)
    keys = {key.removeprefix("grad/"): a for key, a in arrays.items() if key.startswith("grad/")}
    expected = from_state_dict(keys, config.num_heads)
    fidelity.close(golden_file(config), "gradients of all parameters", gradients, expected, 1e-4, relative=True)


def test_without_block_positions(fidelity):
    arrays = load("variant_no_block_position.npz")
    params = from_state_dict({k.removeprefix("param/"): a for k, a in arrays.items() if k.startswith("param/")}, 4)
    config = dataclasses.replace(SHAPES["A"], block_positions=False)
    positions = arrays["position_ids"]
    logits = apply(config, params, arrays["input_ids"], positions, 0 * positions, arrays["sep"])
    fidelity.close("variant_no_block_position.npz", "logits", logits, arrays["logits"], 1e-5)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert jax.tree.map(np.shape, nn.unbox(shapes)) == jax.tree.map(np.shape, params)


def test_attention_scale_changes_nothing(fidelity):
    arrays = load("variant_attention_scale8.npz")
    params = from_state_dict(load("ckpt_A.npz"), 4)
    logits = apply(SHAPES["A"], params, *inputs(arrays))
    fidelity.close("variant_attention_scale8.npz", "logits", logits, arrays["logits_scale8"], 1e-5)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("base", 109_338_624),
        ("large", 334_688_256),
        ("410m", 410_265_600),
        ("515m", 514_632_960),
        ("roberta-large", 354_873_344),
        ("large-chinese", 355_659_776),
        ("2b", 1_920_122_880),
        ("10b", 9_880_682_496),
    ],
)
def test_parameter_counts(name, count):
    assert parameter_count(GLMConfig.named(name)) == count


@pytest.mark.thorough
def test_fresh_parameters_have_the_statistics_of_the_original(fidelity):
    config = GLMConfig(4000, 12, 256, 8, 512)
    params = nn.unbox(jax.jit(lambda: init_params(config, jax.random.key(0)))())
    stats = json.loads((GOLDEN / "init_stats_12L_256H.json").read_text())
    layers = params["layers"]
    tensors = {
        "word_embeddings.weight": params["word_embeddings"]["embedding"],
        "transformer.position_embeddings.weight": params["position_embeddings"]["embedding"],
        "transformer.block_position_embeddings.weight": params["block_position_embeddings"]["embedding"],
        "transformer.final_layernorm.weight": params["final_layernorm"]["scale"],
        "transformer.final_layernorm.bias": params["final_layernorm"]["bias"],
    }
    for i, norm in enumerate(("input_layernorm", "post_attention_layernorm")):
        tensors[f"transformer.layers.3.{norm}.weight"] = layers[norm]["scale"][3 + i]
        tensors[f"transformer.layers.3.{norm}.bias"] = layers[norm]["bias"][3]
    for block, name in [
        ("attention", "query_key_value"),
        ("attention", "dense"),
        ("mlp", "dense_h_to_4h"),
        ("mlp", "dense_4h_to_h"),
    ]:
        tensors[f"transformer.layers.3.{block}.{name}.weight"] = layers[block][name]["kernel"][3]
        tensors[f"transformer.layers.3.{block}.{name}.bias"] = layers[block][name]["bias"][3]
    assert tensors.keys() == stats.keys()
    for name, (_, std, _) in stats.items():
        actual = np.asarray(tensors[name])
        assert actual.dtype == np.float32
        constant = 1.0 if name.endswith("layernorm.weight") else 0.0
        np.testing.assert_allclose(actual.mean(), constant, atol=5 * max(std, 1e-9) / actual.size**0.5)
        if std:
            what = "standard deviation of each tensor"
            fidelity.close("init_stats_12L_256H.json", what, actual.std(), std, 0.02, relative=True)
        else:
            assert actual.std() == 0
    first, second = layers["mlp"]["dense_h_to_4h"]["kernel"][:2]
    assert not np.array_equal(first, second)


# --- structure through gradients


@pytest.mark.parametrize("scan", [True, False])
def test_the_mask_through_gradients(tiny, scan):
    config, params, (tokens, *positions, prefix) = tiny
    config = dataclasses.replace(config, scan_layers=scan)

    def hidden(table, row):
        changed = {**params, "word_embeddings": {"embedding": table}}
        arguments = (a[row : row + 1] for a in (tokens, *positions, prefix))
        return apply(config, changed, *arguments, head=False)[0].sum(-1)

    for row in range(3):
        jacobian = jax.jacrev(hidden)(params["word_embeddings"]["embedding"], row)  # [T V D]
        influence = np.abs(np.asarray(jacobian)[:, tokens[row]]).max(-1)  # tokens of a row are distinct
        i, j = np.indices(influence.shape)
        sees = (j <= i) | (j < prefix[row])
        assert (influence[~sees] == 0).all()
        assert (influence[sees] > 1e-6).all()


def test_rows_do_not_depend_on_neighbours_or_padding(tiny):
    config, params, (tokens, *positions, prefix) = tiny
    run = functools.partial(apply, config, params)
    together = run(tokens, *positions, prefix)
    order = np.array([2, 0, 1])
    shuffled = run(*(a[order] for a in (tokens, *positions, prefix)))
    np.testing.assert_allclose(shuffled, together[order], atol=1e-6)
    rows = np.array([0, 1])  # a full prefix reads whatever stands inside it; only these two end in Part B
    padding = np.full((2, 5), 17, np.int32)
    padded = [np.concatenate([a[rows], padding], 1) for a in (tokens, *positions)]
    np.testing.assert_allclose(run(*padded, prefix[rows])[:, :12], together[rows], atol=1e-6)


# --- the same function in other forms


def random_targets(tiny):
    return np.random.default_rng(3).integers(0, 12, (3, 5)).astype(np.int32)


@pytest.mark.thorough
@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_target_index_selects_logits(tiny, scan, num_layers):
    config, params, batch = tiny
    config = dataclasses.replace(config, scan_layers=scan, num_layers=num_layers)
    params = {**params, "layers": jax.tree.map(lambda a: a[:num_layers], params["layers"])}
    index = random_targets(tiny)
    everywhere = apply(config, params, *batch)
    selected = apply(config, params, *batch, index)
    np.testing.assert_allclose(selected, np.take_along_axis(np.asarray(everywhere), index[..., None], 1), atol=2e-6)


def test_only_targets_meet_the_vocabulary(tiny):
    config, params, batch = tiny
    program = str(jax.make_jaxpr(lambda p: apply(config, p, *batch, random_targets(tiny)))(params))
    assert "f32[3,5,128]" in program
    assert "f32[3,12,128]" not in program
    assert "f32[36,128]" not in program


@pytest.mark.thorough
def test_scan_and_remat_change_no_number(tiny):
    config, params, batch = tiny

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(config, params):
        def loss(params):
            logits = apply(config, params, *batch, random_targets(tiny), deterministic=False)
            return jnp.square(logits).mean()

        return jax.value_and_grad(loss)(params)

    config = dataclasses.replace(config, hidden_dropout=0.3, attention_dropout=0.3)
    expected = gradients(config, params)
    for change in ({"scan_layers": False, "remat": "dots"}, {"remat": "full"}):
        assert largest_error(gradients(dataclasses.replace(config, **change), params), expected) < 1e-5, change


@pytest.mark.thorough
def test_remat_policies_compute_again_what_they_say():
    """Products in the gradient of one layer: "dots" repeats those of attention, "full" also the dense layers'."""

    def products(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            total += equation.primitive.name == "dot_general"
            branches = equation.params.get("branches")  # of the CPU's own gradient and everybody's: one of them runs
            inner = branches[:1] if branches else jax.tree.leaves(list(equation.params.values()))
            total += sum(products(getattr(j, "jaxpr", j)) for j in inner if hasattr(getattr(j, "jaxpr", j), "eqns"))
        return total

    actual = {}
    for remat in ("none", "dots", "full"):
        config = GLMConfig(
            64, 1, 16, 2, 8, hidden_dropout=0, attention_dropout=0, remat=remat, scan_layers=False, dtype="float32"
        )
        params = nn.unbox(init_params(config, jax.random.key(0)))
        ids = jnp.zeros((1, 4), jnp.int32)

        def loss(params, config=config, ids=ids):
            return GLM(config).apply({"params": params}, ids, ids, ids, jnp.zeros(1, jnp.int32)).sum()

        compiled = jax.make_jaxpr(jax.grad(loss))(params)
        actual[remat] = products(compiled.jaxpr)
    assert actual["none"] < actual["dots"] < actual["full"], actual


@pytest.mark.thorough
def test_bfloat16_is_near_float32(tiny):
    config, params, batch = tiny
    low = dataclasses.replace(config, dtype="bfloat16")
    exact = apply(config, params, *batch)
    gradients = jax.grad(lambda p: apply(low, p, *batch).mean())(params)
    logits = apply(low, params, *batch)
    assert logits.dtype == jnp.float32
    assert not np.array_equal(logits, logits.astype(jnp.bfloat16))  # summed, not only stored, in float32
    np.testing.assert_allclose(logits, exact, atol=0.05)
    assert {a.dtype for a in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


def test_erf_gelu_differs_slightly(tiny):
    config, params, batch = tiny
    tanh = apply(config, params, *batch)
    exact = apply(dataclasses.replace(config, gelu="exact"), params, *batch)
    assert 1e-6 < np.abs(tanh - exact).max() < 1e-2


# --- dropout


@pytest.mark.thorough
def test_dropout_is_reproducible_and_off_when_deterministic(tiny):
    config, params, batch = tiny

    def run(seed, **rates):
        return apply(dataclasses.replace(config, **rates), params, *batch, seed=seed, deterministic=False)

    still = apply(config, params, *batch)
    np.testing.assert_array_equal(run(1), run(1))
    assert np.abs(run(1) - run(2)).max() > 0.01
    for rates in ({"hidden_dropout": 0.0}, {"attention_dropout": 0.0}):
        assert np.abs(run(1, **rates) - still).max() > 0.01
    np.testing.assert_array_equal(run(1, hidden_dropout=0.0, attention_dropout=0.0), still)


@pytest.mark.thorough
def test_both_branches_of_a_layer_are_dropped_at_the_rate(tiny):
    """Hidden dropout seen through a layer whose branches are constant: the zeros are the dropped elements."""
    config, params, batch = tiny
    config = dataclasses.replace(config, hidden_dropout=0.25, attention_dropout=0.0)
    layer = jax.tree.map(lambda a: jnp.zeros(a.shape[1:]), params["layers"])
    layer["attention"]["dense"]["bias"] += 1.0
    layer["mlp"]["dense_4h_to_h"]["bias"] += 10.0
    out, _ = Layer(config, deterministic=False).apply(
        {"params": layer},
        jnp.zeros((3 * 500, 64)),
        LayerInputs(jnp.asarray(batch[3]), None, None),
        rngs={"dropout": jax.random.key(0)},
    )
    attended, fed = np.round(np.asarray(out) * 0.75) % 10 == 1, np.asarray(out) * 0.75 > 5
    for kept in (attended, fed):
        assert abs(kept.mean() - 0.75) < 5 * np.sqrt(0.25 * 0.75 / out.size)
    assert abs((attended & fed).mean() - 0.75**2) < 0.01  # independent of each other


@pytest.mark.thorough
def test_layers_draw_different_dropout(tiny):
    """Layers that add 1, 10 and 100 to every kept element: all eight sums appear only if they drop independently."""
    config, params, batch = tiny
    config = dataclasses.replace(config, hidden_dropout=0.5, attention_dropout=0.0)
    params = jax.tree.map(jnp.zeros_like, params)
    added = jnp.array([1.0, 10.0, 100.0])[:, None]
    params["layers"]["mlp"]["dense_4h_to_h"]["bias"] += added
    params["final_layernorm"]["scale"] += 1.0
    for scan in (True, False):
        config = dataclasses.replace(config, scan_layers=scan)
        hidden = apply(config, params, *batch, deterministic=False, head=False)
        values = max(len(np.unique(row)) for row in np.asarray(hidden).round(3).reshape(-1, config.hidden_size))
        assert values == 8


def test_no_random_numbers_without_dropout(tiny):
    config, params, batch = tiny
    config = dataclasses.replace(config, hidden_dropout=0.0, attention_dropout=0.0)
    program = jax.make_jaxpr(lambda p, *a: GLM(config).apply({"params": p}, *a, deterministic=False))(params, *batch)
    assert "random" not in str(program)


# --- names, sizes, errors


def test_parameter_tree_and_logical_axes():
    boxed = jax.eval_shape(lambda: init_params(SHAPES["A"], jax.random.key(0)))
    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)  # noqa: E731
    actual = {
        "/".join(k.key for k in path): (leaf.value.shape, leaf.names)
        for path, leaf in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_box)
    }
    y, d, n, h, f = 3, 64, 4, 16, 256
    norm = {"scale": ((y, d), ("layers", "embed")), "bias": ((y, d), ("layers", "embed"))}
    expected = {
        "word_embeddings/embedding": ((128, d), ("vocab", "embed")),
        "position_embeddings/embedding": ((65, d), ("positions", "embed")),
        "block_position_embeddings/embedding": ((65, d), ("positions", "embed")),
        "layers/attention/query_key_value/kernel": (
            (y, d, 3, n, h),
            ("layers", "embed", "qkv", "heads", "head_dim"),
        ),
        "layers/attention/query_key_value/bias": ((y, 3, n, h), ("layers", "qkv", "heads", "bias_head_dim")),
        "layers/attention/dense/kernel": ((y, n, h, d), ("layers", "heads", "head_dim", "embed")),
        "layers/attention/dense/bias": ((y, d), ("layers", "embed")),
        "layers/mlp/dense_h_to_4h/kernel": ((y, d, f), ("layers", "embed", "mlp")),
        "layers/mlp/dense_h_to_4h/bias": ((y, f), ("layers", "bias_mlp")),
        "layers/mlp/dense_4h_to_h/kernel": ((y, f, d), ("layers", "mlp", "embed")),
        "layers/mlp/dense_4h_to_h/bias": ((y, d), ("layers", "embed")),
        "final_layernorm/scale": ((d,), ("embed",)),
        "final_layernorm/bias": ((d,), ("embed",)),
        **{
            f"layers/{name}/{k}": v for name in ("input_layernorm", "post_attention_layernorm") for k, v in norm.items()
        },
    }
    assert actual == expected


def test_named_sizes_and_overrides():
    config = GLMConfig.named("base", dtype="float32", num_layers=2)
    assert (config.num_layers, config.hidden_size, config.dtype) == (2, 768, "float32")
    assert (config.head_width, config.ffn_width, config.num_positions) == (64, 3072, 513)
    assert GLMConfig.named("10b-chinese").vocab_size == 50048
    with pytest.raises(ValueError, match="unknown model size 'bert'; known: base, large, doc"):
        GLMConfig.named("bert")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "hidden_size 64 must be a multiple of num_heads 5.*nearest is 65"),
        ({"num_layers": 0}, "num_layers 0 must be at least 1"),
        ({"hidden_dropout": 1.0}, r"hidden_dropout 1.0 must lie in \[0, 1\)"),
        ({"remat": "some"}, "unknown remat 'some'; known: none"),
        ({"gelu": "relu"}, "unknown gelu 'relu'; known: tanh, exact"),
        ({"attention_backend": "flesh"}, "unknown attention_backend 'flesh'; known: auto"),
        ({"dtype": "float33"}, "unknown dtype 'float33'"),
        ({"dtype": "int32"}, "dtype int32 is not a floating type"),
    ],
)
def test_impossible_configs(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SHAPES["A"], **change)


def test_positions_outside_the_tables(tiny):
    config, params, (tokens, positions, blocks, prefix) = tiny
    check_lengths(config, 64, 64)
    check_lengths(config, positions, blocks)
    with pytest.raises(ValueError, match="position_ids reach from 0 to 65, but the table holds positions 0 to 64"):
        check_lengths(config, np.array([[0, 65]]))
    with pytest.raises(ValueError, match="block_position_ids reach from 80 to 80"):
        check_lengths(config, 64, 80)
    with pytest.raises(ValueError, match="position_ids reach from -1 to 11"):
        check_lengths(config, positions - 1 + np.where(positions == 11, 1, 0))
    check_lengths(dataclasses.replace(config, block_positions=False), 63, 80)
    with pytest.raises(ValueError, match="0 to 63"):
        check_lengths(dataclasses.replace(config, block_positions=False), 64)
    positions = positions + np.array([[0], [53], [54]], np.int32)  # up to 11, 64, 65
    logits = apply(config, params, tokens, positions, blocks, prefix)
    assert np.isfinite(logits[:2]).all()
    assert np.isnan(logits[2]).all()


@pytest.mark.thorough
def test_fresh_parameters_need_no_attention_kernel(monkeypatch):
    """Which may not be vmapped over layers: neither making parameters nor checking their shapes calls one."""
    config = GLMConfig(64, 2, 16, 2, 16, dtype="bfloat16", attention_backend="cudnn", attention_dropout=0.0)
    monkeypatch.setattr(
        "glm_jax.model.attention.traced_device", lambda: types.SimpleNamespace(device_kind="NVIDIA H200")
    )
    calls = []

    def stand_in(q, k, v, *, mask, implementation):
        calls.append(q.shape)
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    params = unbox(init_params(config, jax.random.key(0)))
    assert not calls
    ids = jnp.zeros((2, 8), jnp.int32)
    jax.eval_shape(lambda p: GLM(config).apply({"params": p}, ids, ids, ids, jnp.full(2, 5)), params)
    assert set(calls) == {(2, 8, 2, 8)}
