"""Tuning methods on a model: what trains, what stays, and that each computes what its definition says."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import glm_jax
from glm_jax import methods
from glm_jax.decoding import steps
from glm_jax.decoding.steps import with_computed_prefix
from glm_jax.distributed.sharding import unbox
from glm_jax.model.batch import Batch
from glm_jax.model.classifier_head import with_classifier
from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import GLM, init_params

CONFIG = GLMConfig(
    vocab_size=64, num_layers=3, hidden_size=32, num_heads=4, max_position_embeddings=40, dtype="float32",
    hidden_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
MODEL = GLM(CONFIG)
EVERY = {
    "full": {}, "bias": {}, "ia3": {}, "first_layers": {"frozen": 2}, "classifier": {},
    "lora": {"rank": 3, "alpha": 6.0}, "p_tuning_v2": {"length": 5, "dropout": 0.0}, "prompt": {"length": 5},
    "prompt_spell": {"length": 4},
}  # fmt: skip


def make(name, **settings):
    return methods.make_method(name, EVERY[name] | settings)


@functools.cache
def base():
    """Parameters whose biases and scales are not those of a fresh model, and a head."""
    params = unbox(jax.jit(lambda key: with_classifier(3, CONFIG, key))(jax.random.key(0)))
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + 0.05 * random.normal(size=leaf.shape).astype(np.float32), params)


def own(params):
    return {name: tree for name, tree in params.items() if name != "classifier"}


def rows(batch=2, context=8, answer=4, seed=0):
    """Part A of `context` tokens and one answer; every position of the answer is a target."""
    random = np.random.default_rng(seed)
    length = context + answer
    tokens = random.integers(1, 60, (batch, length)).astype(np.int32)
    positions = np.array([*range(context), *[3] * answer], np.int32)
    blocks = np.array([0] * context + [*range(1, answer + 1)], np.int32)
    index = np.tile(np.arange(context, length, dtype=np.int32), (batch, 1))
    batch = Batch(
        tokens=tokens,
        position_ids=np.tile(positions, (batch, 1)),
        block_position_ids=np.tile(blocks, (batch, 1)),
        prefix_lengths=np.full(batch, context, np.int32),
        target_index=index,
        target_ids=random.integers(1, 60, (batch, answer)).astype(np.int32),
        target_weights=np.ones((batch, answer), np.float32),
        target_source=np.zeros((batch, answer), np.int32),
        objective=np.zeros(batch, np.int32),
    )
    return jax.tree.map(jnp.asarray, batch)


def logits(params, model=MODEL, batch=None, **options):
    """Compiled as a whole: operation by operation it would be a hundred programs."""
    return _apply(params, (batch or rows()).model_inputs() | options, model)


@functools.partial(jax.jit, static_argnums=2)
def _apply(params, inputs, model):
    return model.apply({"params": params}, **inputs)


@functools.partial(jax.jit, static_argnums=0)
def add(method, params):
    return method.add(params, CONFIG, jax.random.key(2))


def test_every_method_is_tested():
    assert EVERY.keys() == methods.METHODS.keys()


@pytest.mark.parametrize("name", EVERY)
def test_split_and_join_are_inverse_and_nothing_else_changes(name):
    method = make(name)
    params = add(method, base())
    trained, frozen = method.split(params)
    assert "classifier" in trained
    assert "classifier" not in frozen
    joined = methods.with_joined_layers(method.join(trained, frozen))
    assert jax.tree.structure(joined) == jax.tree.structure(dict(params))
    jax.tree.map(np.testing.assert_array_equal, joined, dict(params))
    kept = methods.without_adapter(params)
    kept.pop("prompt", None)
    jax.tree.map(np.testing.assert_array_equal, kept, base())


@pytest.mark.parametrize("name", ["lora", "ia3", "bias", "first_layers", "classifier", "prompt_spell"])
def test_step_zero_is_the_base(name):
    method = make(name)
    params = method.join(*method.split(add(method, base())))
    apply = lambda params: MODEL.apply({"params": params}, **rows().model_inputs())  # noqa: E731 (not compiled: bits)
    np.testing.assert_array_equal(apply(params), apply(base()))


@pytest.mark.thorough
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("scan", [True, False])
def test_gradients_are_those_of_the_whole(name, scan):
    """Of what trains, the gradient is that of the same parameters when everything trains; the rest has none."""
    method, batch = make(name), rows()
    model = GLM(dataclasses.replace(CONFIG, scan_layers=scan))
    params = add(method, base())
    params = jax.tree.map(lambda a: a + 0.01, params)  # B of LoRA is not zero
    trained, frozen = method.split(params)

    def loss(params):
        hidden = model.apply({"params": params}, **batch.model_inputs() | {"target_index": None}, head=False)
        head = (hidden[:, 0] @ params["classifier"]["output"]["kernel"]).sum()
        return glm_jax.loss(model, own(params), batch) + 1e-3 * head

    expected, _ = method.split(jax.jit(jax.grad(loss))(params))
    actual = jax.jit(jax.grad(lambda trained: loss(method.join(trained, frozen))))(trained)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actual, expected)


@pytest.mark.thorough
@pytest.mark.parametrize("name", EVERY)
def test_frozen_parameters_stay_bit_for_bit_and_have_no_optimizer_state(name):
    method, batch = make(name), rows()
    model = method.model(MODEL)
    params = add(method, base())
    trained, frozen = method.split(params)
    if name != "full":
        frozen = jax.tree.map(lambda a: a.astype(jnp.bfloat16), frozen)
    tx = optax.adamw(1e-2)

    def objective(params, batch, dropout_key=None, score=False):
        from glm_jax.training.train_step import batch_objective

        total, sums = batch_objective(model)(own(params), batch, dropout_key)
        hidden = model.apply({"params": params}, **batch.model_inputs() | {"target_index": None}, head=False)
        return total + 1e-3 * (hidden[:, 0] @ params["classifier"]["output"]["kernel"]).sum(), sums

    step = jax.jit(glm_jax.make_train_step(model, tx, objective, join=method.join))
    state = glm_jax.TrainState.create(trained, tx, frozen)
    for _ in range(50):
        state, metrics = step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, state.frozen, frozen)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(trained))
    moments = sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state))
    assert moments <= 2 * size + 16
    assert np.isfinite(metrics["loss"])
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, trained)
    changed.pop("classifier")
    if name not in ("classifier", "prompt_spell"):  # no row has columns of a soft prompt
        assert any(jax.tree.leaves(changed))


def dense_kernels(params):
    """(kernel, product of the factors) of every adapted module."""
    for module in (
        params["layers"]["attention"]["query_key_value"], params["layers"]["attention"]["dense"],
        params["layers"]["mlp"]["dense_h_to_4h"], params["layers"]["mlp"]["dense_4h_to_h"],
    ):  # fmt: skip
        if "lora_a" in module:
            yield module


@pytest.mark.parametrize(
    ("separate", "targets"),
    [
        (False, None),
        pytest.param(True, None, marks=pytest.mark.thorough),
        pytest.param(True, ("query_key_value",), marks=pytest.mark.thorough),
        pytest.param(False, ("dense", "dense_4h_to_h"), marks=pytest.mark.thorough),
    ],
)
def test_lora_merged_is_lora_applied(separate, targets):
    """Logits, and the gradient of the factors; with the last layer's queries apart from its keys and values."""
    method = make("lora", separate_query_key_value=separate, targets=targets, rank_stabilized=separate)
    params = add(method, base())
    keys = iter(jax.random.split(jax.random.key(3), 100))
    for module in dense_kernels(params):
        module["lora_b"] = 0.3 * jax.random.normal(next(keys), module["lora_b"].shape)
    merged, adapter = methods.merge(params)
    assert not methods.has_adapter(merged)
    np.testing.assert_allclose(logits(params), logits(merged), atol=1e-5)
    assert float(jnp.abs(logits(params) - logits(base())).max()) > 1e-2
    back = methods.unmerge(merged, adapter)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), back, params)

    trained, frozen = method.split(params)
    loss = lambda params: glm_jax.loss(MODEL, own(params), rows())  # noqa: E731
    applied = jax.jit(jax.grad(lambda t: loss(method.join(t, frozen))))(trained)
    through = jax.jit(jax.grad(lambda t: loss(methods.merge(method.join(t, frozen))[0])))(trained)
    applied.pop("classifier"), through.pop("classifier")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), applied, through)


def test_lora_starts_as_peft_does():
    method = methods.LoRA(rank=4)
    params = add(method, base())
    for module in dense_kernels(params):
        inputs = np.prod(module["lora_a"].shape[1:-1])
        assert not module["lora_b"].any()
        largest = float(jnp.abs(module["lora_a"]).max()) * inputs**0.5
        assert 0.9 < largest <= 1.0  # Kaiming-uniform with a = sqrt(5): within 1 / sqrt(inputs)
        assert float(module["lora_a"].std()) == pytest.approx((3 * inputs) ** -0.5, rel=0.1)
        np.testing.assert_allclose(module["lora_scale"], 2.0)
    assert methods.LoRA(rank=4, rank_stabilized=True).scale == 4.0


def test_lora_of_some_layers_leaves_the_others():
    method = methods.LoRA(rank=2, layers=(1,))
    trained, frozen = method.split(add(method, own(base())))
    grad = jax.jit(jax.grad(lambda t: glm_jax.loss(MODEL, method.join(t, frozen), rows())))
    tx = optax.adamw(1e-2, weight_decay=0.1)
    state, start = tx.init(trained), trained
    for _ in range(3):
        updates, state = tx.update(grad(trained), state, trained)
        trained = optax.apply_updates(trained, updates)
    for path, leaf in jax.tree_util.tree_leaves_with_path(trained):
        assert not leaf[np.array([0, 2])].any(), path
        assert leaf[1].any(), path
    assert not jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), start, trained))


def test_ia3_merges():
    method = make("ia3")
    params = jax.tree.map(lambda a: a, add(method, base()))
    trained, frozen = method.split(params)
    trained = jax.tree.map(lambda a: a + 0.3 * jnp.sin(jnp.arange(a.size, dtype=jnp.float32).reshape(a.shape)), trained)
    params = method.join(trained, frozen)
    merged, adapter = methods.merge(params)
    np.testing.assert_allclose(logits(params), logits(merged), atol=1e-5)
    assert float(jnp.abs(logits(params) - logits(base())).max()) > 1e-2
    back = methods.unmerge(merged, adapter)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), back, params)
    scale = params["layers"]["attention"]["query_key_value"]["output_scale"]
    assert scale.shape == (3, 2, 4, 8)  # keys and values, no queries


def prefix_by_hand(params):
    if "keys" in params["prefix"]:
        return params["prefix"]["keys"][:, None], params["prefix"]["values"][:, None]
    return jax.jit(lambda params: MODEL.apply({"params": params}, method="trained_prefix"))(params)


@pytest.mark.parametrize(
    ("name", "settings", "scan"),
    [
        ("p_tuning_v2", {}, True),
        pytest.param("p_tuning_v2", {}, False, marks=pytest.mark.thorough),
        pytest.param("p_tuning_v2", {"projection": True}, True, marks=pytest.mark.thorough),
        pytest.param("prompt", {}, True, marks=pytest.mark.thorough),
        pytest.param("prompt", {}, False, marks=pytest.mark.thorough),
    ],
)
def test_a_prefix_is_its_keys_and_values(name, settings, scan):
    """In a full forward pass and in cached decoding, and in packed rows with segments."""
    model = GLM(dataclasses.replace(CONFIG, scan_layers=scan))
    method = make(name, init="random", **settings)
    params = own(add(method, base()))
    plain = own(base())
    prefix = prefix_by_hand(params)
    assert prefix[0].shape == (3, 1, 5, 4, 8)
    for batch in (rows(), segmented()):
        expected = logits(plain, model, batch, prefix=prefix)
        np.testing.assert_allclose(logits(params, model, batch), expected, atol=2e-6)
        assert float(jnp.abs(expected - logits(plain, model, batch)).max()) > 1e-3
    batch = rows()
    for unrolled in (False, True):
        np.testing.assert_allclose(decoded(params, batch, unrolled), logits(params, model, batch), atol=1e-5)


@pytest.mark.parametrize(("name", "settings"), [("prompt", {}), ("p_tuning_v2", {"projection": True})])
def test_a_prefix_is_computed_once_for_scoring(name, settings):
    params = own(add(make(name, init="random", **settings), own(base())))
    computed = with_computed_prefix(MODEL, params)
    assert computed["prefix"].keys() == {"keys", "values"}
    np.testing.assert_allclose(logits(computed), logits(params), atol=1e-6)
    assert with_computed_prefix(MODEL, computed) is computed
    plain = own(base())
    assert with_computed_prefix(MODEL, plain) is plain


def segmented():
    batch = rows()
    segments = np.tile(np.array([1] * 4 + [2] * 4 + [1, 1, 2, 2], np.int32), (2, 1))
    return batch.replace(segment_ids=jnp.asarray(segments))


def decoded(params, batch, unrolled):
    """The logits of every answer token, one step of the cache at a time."""
    context = int(batch.prefix_lengths[0])
    prepared = steps.prepare(params, config=CONFIG, unrolled=unrolled)
    part_a = (batch.tokens[:, :context], batch.position_ids[:, :context], batch.block_position_ids[:, :context])
    cache = steps.encode(prepared, *part_a, batch.prefix_lengths, batch.prefix_lengths, model=MODEL)
    answers = steps.empty_answers(cache, 1, batch.tokens.shape[1] - context)
    results = []
    for number in range(batch.tokens.shape[1] - context):
        column = [ids[:, [context + number]] for ids in (batch.tokens, batch.position_ids, batch.block_position_ids)]
        step, answers = steps.forward(prepared, cache, answers, jnp.int32(number), *column, model=MODEL)
        results.append(step[:, 0])
    return jnp.stack(results, 1)


def test_a_prefix_of_real_tokens_is_what_they_leave():
    """Initialised from a text, a prefix is that text in front, which does not see what follows."""
    text = np.array([[7, 8, 9, 10, 11]], np.int32)
    for method in (make("p_tuning_v2"), make("prompt")):
        params = add(method, own(base()))
        trained, frozen = method.split(params)
        trained = method.start_from(trained, MODEL, frozen, text[0].tolist())
        batch = rows()
        both = batch.replace(
            tokens=np.concatenate([np.tile(text, (2, 1)), batch.tokens], 1),
            position_ids=np.concatenate([np.tile(np.arange(5, dtype=np.int32), (2, 1)), batch.position_ids], 1),
            block_position_ids=np.concatenate([np.zeros((2, 5), np.int32), batch.block_position_ids], 1),
            prefix_lengths=batch.prefix_lengths + 5,
            target_index=batch.target_index + 5,
            segment_ids=np.tile(np.array([0] * 5 + [1] * 12, np.int32), (2, 1)),
        )
        both = jax.tree.map(jnp.asarray, both)
        np.testing.assert_allclose(
            logits(method.join(trained, frozen)), logits(frozen, batch=both), atol=2e-6
        )  # positions of the text are not shifted


def test_prefix_dropout_is_of_its_own_in_every_row():
    method = methods.PTuningV2(length=5, dropout=0.5)
    model = method.model(MODEL)
    params = own(add(method, base()))
    batch = jax.tree.map(lambda a: jnp.concatenate([a[:1], a[:1]]), rows())
    apply = jax.jit(
        lambda key: model.apply({"params": params}, **batch.model_inputs(), deterministic=False, rngs={"dropout": key})
    )
    first = apply(jax.random.key(0))
    assert float(jnp.abs(first[0] - first[1]).max()) > 1e-4
    np.testing.assert_array_equal(first, apply(jax.random.key(0)))
    np.testing.assert_allclose(logits(params, model, batch), logits(params, MODEL, batch), atol=1e-6)


def test_lora_dropout_leaves_the_base_alone():
    method = methods.LoRA(rank=3, dropout=0.5)
    model = method.model(MODEL)
    params = own(add(method, base()))
    apply = lambda params, seed: model.apply(  # noqa: E731
        {"params": params}, **rows().model_inputs(), deterministic=False, rngs={"dropout": jax.random.key(seed)}
    )
    plain = MODEL.apply({"params": own(base())}, **rows().model_inputs())
    np.testing.assert_array_equal(apply(params, 0), plain)  # B is zero
    for module in dense_kernels(params):
        module["lora_b"] = module["lora_b"] + 0.1
    assert float(jnp.abs(apply(params, 0) - apply(params, 1)).max()) > 1e-4


def test_frozen_first_layers_cost_no_backward_pass():
    """The gradient's program has the products of the trained layers only."""
    method = methods.FirstLayers(frozen=2)
    trained, frozen = method.split(own(base()))
    of_some = jax.grad(lambda t: glm_jax.loss(MODEL, method.join(t, frozen), rows()))
    of_all = jax.grad(lambda params: glm_jax.loss(MODEL, params, rows()))
    flops = [
        jax.jit(f).lower(x).compile().cost_analysis()["flops"] for f, x in ((of_some, trained), (of_all, own(base())))
    ]
    assert flops[0] < flops[1]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lorra", {}, "unknown method 'lorra'; nearest: lora"),
        ("lora", {"rnk": 3}, "method lora has no setting 'rnk'"),
        ("lora", {"rank": 0}, "lora.rank 0 must be at least 1"),
        ("lora", {"rank": 33}, "lora.rank 33 is larger than layers/attention/dense, whose kernel has rank 32"),
        ("lora", {"targets": ("query_key",)}, "no module is named 'query_key'; nearest: query_key_value"),
        ("lora", {"targets": ()}, "lora.targets is empty"),
        ("lora", {"layers": (3,)}, "there is no layer 3; they are 0 to 2"),
        ("lora", {"alpha": 0.0}, "lora.alpha 0.0 must be positive"),
        ("lora", {"dropout": 1.0}, "lora.dropout 1.0 must lie in"),
        ("p_tuning_v2", {"length": 42}, "p_tuning_v2.length 42 is more than the 41 positions"),
        ("p_tuning_v2", {"length": 0}, "p_tuning_v2.length 0 must be at least 1"),
        ("p_tuning_v2", {"init": "zero"}, "unknown p_tuning_v2.init 'zero'"),
        ("prompt", {"length": 42}, "prompt.length 42 is more than"),
        ("prompt_spell", {"function": "gru"}, "unknown prompt_spell.function 'gru'"),
        ("prompt_spell", {"length": 39}, "leaves no room for text"),
        ("first_layers", {"frozen": 3}, "leaves none of the 3 layers"),
        ("first_layers", {"frozen": 0}, "must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        methods.make_method(name, settings).add(base(), CONFIG, jax.random.key(0))


def test_a_prefix_of_another_model_is_named():
    params = own(make("p_tuning_v2").add(base(), CONFIG, jax.random.key(0)))
    params["prefix"] = jax.tree.map(lambda a: a[:2], params["prefix"])
    with pytest.raises(ValueError, match="prefix keys has shape"):
        logits(params)


def test_init_params_are_not_changed_by_the_lookup_of_adapters():
    fresh = unbox(init_params(CONFIG, jax.random.key(0)))
    assert not methods.has_adapter(fresh)
