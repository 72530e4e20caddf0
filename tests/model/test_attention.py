"""The visibility rule and the attention that obeys it."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.model.attention import PORTABLE, attention
from glm_jax.model.dropout import keep_mask, mask_seeds
from glm_jax.model.visibility import visible

B, T, N, H = 4, 9, 2, 8
PREFIXES = jnp.array([0, 3, 9, 1], jnp.int32)


@pytest.fixture
def qkv():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(3, B, T, N, H)), jnp.float32)


def written_out(q, k, v, prefix, positions):
    """One row at a time, one query at a time, over the keys that the paper lets it see; float64."""
    q, k, v, out = *(np.asarray(a, np.float64) for a in (q, k, v)), np.zeros(q.shape)
    for b in range(B):
        for i, position in enumerate(positions[b]):
            visible_keys = [j for j in range(T) if j < prefix[b] or j <= position]
            for n in range(N):
                scores = np.array([q[b, i, n] @ k[b, j, n] for j in visible_keys]) / np.sqrt(H)
                weights = np.exp(scores - scores.max())
                out[b, i, n] = sum(w * v[b, j, n] for w, j in zip(weights / weights.sum(), visible_keys, strict=True))
    return out


def test_visible_is_the_rule_of_the_original():
    for prefix in range(T + 1):
        mask = visible(np.int32(prefix), np.arange(T)[:, None], np.arange(T)[None, :])
        expected = [[j <= i or j < prefix for j in range(T)] for i in range(T)]
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("backend", PORTABLE)  # cudnn: below; flash: test_flash_gpu.py; splash: test_splash_tpu.py
def test_backend_obeys_the_rule(qkv, backend):
    q, k, v = qkv
    positions = np.tile(np.arange(T), (B, 1))
    out = attention(q, k, v, PREFIXES, backend=backend)
    np.testing.assert_allclose(out, written_out(q, k, v, PREFIXES, positions), atol=1e-6)


@pytest.mark.parametrize("backend", PORTABLE)  # cudnn: below; flash: test_flash_gpu.py; splash: test_splash_tpu.py
def test_gradients_are_those_of_the_definition(qkv, backend):
    direction = np.random.default_rng(1).normal(size=(B, T, N, H)).astype(np.float32)

    def by_definition(q, k, v):
        scores = jnp.einsum("bqnh,bknh->bnqk", q, k) / H**0.5
        i, j = jnp.arange(T)[:, None], jnp.arange(T)[None, :]
        mask = (j <= i)[None, None] | (j[None, None] < PREFIXES[:, None, None, None])
        weights = jnp.where(mask, jnp.exp(scores), 0.0)
        return jnp.einsum("bnqk,bknh->bqnh", weights / weights.sum(-1, keepdims=True), v)

    expected = jax.grad(lambda qkv: jnp.vdot(direction, by_definition(*qkv)))(qkv)
    actual = jax.grad(lambda qkv: jnp.vdot(direction, attention(*qkv, PREFIXES, backend=backend)))(qkv)
    np.testing.assert_allclose(actual, expected, atol=2e-6)


def test_queries_may_stand_anywhere(qkv):
    q, k, v = qkv
    positions = jnp.array([[8, 0], [3, 3], [1, 7], [4, 2]], jnp.int32)
    q = q[:, :2]
    out = attention(q, k, v, PREFIXES, query_index=positions)
    np.testing.assert_allclose(out, written_out(q, k, v, PREFIXES, positions), atol=1e-6)


def test_bfloat16_keeps_the_softmax_in_float32(qkv):
    q, k, v = (jnp.asarray(a, jnp.bfloat16) for a in qkv)
    out = attention(q, k, v, PREFIXES)
    assert out.dtype == jnp.bfloat16
    exact = attention(*(a.astype(jnp.float32) for a in (q, k, v)), PREFIXES)
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.02)
    exps = [e for e in jax.make_jaxpr(lambda *a: attention(*a, PREFIXES))(q, k, v).eqns if e.primitive.name == "exp"]
    assert all(e.outvars[0].aval.dtype == jnp.float32 for e in exps)


@pytest.mark.thorough
@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("backend", PORTABLE)
def test_every_query_sees_trained_keys(qkv, backend, segments, monkeypatch):
    """In each row, or the same in all rows; also when the rule splits rows at the longest prefix."""
    monkeypatch.setattr("glm_jax.model.dense_attention._MIN_KEYS_TO_SPLIT", 2)
    rng = np.random.default_rng(5)
    prefixes = jnp.array([0, 3, 6, 1], jnp.int32)
    ids = jnp.asarray(np.sort(rng.integers(0, 3, (B, T))), jnp.int32) if segments else None
    q, k, v = qkv
    for rows, longest in ((B, None), (1, 6)):
        trained = tuple(jnp.asarray(rng.normal(size=(rows, 2, N, H)), jnp.float32) for _ in range(2))
        out = attention(q, k, v, prefixes, segment_ids=ids, prefix=trained, longest_prefix=longest, backend=backend)
        expected = np.zeros(q.shape)
        for b in range(B):
            keys = np.concatenate([trained[0][b % rows], k[b]])
            values = np.concatenate([trained[1][b % rows], v[b]])
            for i in range(T):
                mask = [j < prefixes[b] or j <= i for j in range(T)]
                if segments:
                    mask = [m and ids[b, j] in (0, ids[b, i]) for j, m in enumerate(mask)]
                scores = np.einsum("nh,jnh->nj", q[b, i], keys) / np.sqrt(H)
                weights = np.exp(scores) * np.array([True, True, *mask])
                expected[b, i] = np.einsum("nj,jnh->nh", weights / weights.sum(-1, keepdims=True), values)
        np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize(("backend", "kind", "instead"), [("flash", "H100", "dense"), ("splash", "TPU v5", "chunked")])
def test_kernels_without_trained_keys_refuse_them(monkeypatch, backend, kind, instead):
    monkeypatch.setattr("glm_jax.model.attention.traced_device", lambda: types.SimpleNamespace(device_kind=kind))
    x = jnp.zeros((B, T, N, 64), jnp.bfloat16)
    with pytest.raises(ValueError, match=f"{backend!r} takes no prefix of trained keys.*choose.*{instead!r}"):
        attention(x, x, x, PREFIXES, prefix=(x[:, :2], x[:, :2]), backend=backend)


def test_large_scores_stay_finite(qkv):
    q, k, v = qkv
    out, gradients = jax.value_and_grad(lambda q: attention(1e4 * q, k, v, PREFIXES).sum())(q)
    assert np.isfinite(out)
    assert np.isfinite(gradients).all()


@pytest.mark.thorough
def test_attention_dropout_drops_probabilities(qkv):
    q, k, _ = qkv
    ones = jnp.ones((B, T, N, H))
    kept = attention(q, k, ones, PREFIXES, dropout_rate=0.5, dropout_key=jax.random.key(1))
    # All values are 1, so the output is the kept probability mass: the same for every column of a head, 1 on average.
    np.testing.assert_allclose(kept, np.broadcast_to(kept[..., :1], kept.shape), atol=1e-6)
    assert len(np.unique(np.asarray(kept[..., 0]).round(4))) > B * T
    many = jax.vmap(lambda key: attention(q, k, ones, PREFIXES, dropout_rate=0.5, dropout_key=key))(
        jax.random.split(jax.random.key(2), 500)
    )
    np.testing.assert_allclose(many.mean(), 1.0, atol=0.02)


def test_no_random_numbers_without_dropout(qkv):
    def program(rate):
        key = jax.random.key(0)
        return str(jax.make_jaxpr(lambda *a: attention(*a, PREFIXES, dropout_rate=rate, dropout_key=key))(*qkv))

    assert "random_bits" in program(0.1)
    assert "random_bits" not in program(0.0)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_gradients_are_those_of_the_plain_formula(qkv, rate):
    """The backward pass is written by hand: against what JAX derives from the formula, with the same mask."""
    q, k, v = qkv
    key = jax.random.key(5)
    index = np.arange(T)
    mask = visible(np.array(PREFIXES)[:, None, None, None], index[None, None, :, None], index[None, None, None])

    def plain(q, k, v):
        scores = jnp.where(mask, jnp.einsum("bqnh,bknh->bnqk", q, k) / np.sqrt(H), -1e30)
        probabilities = jax.nn.softmax(scores)
        if rate:
            probabilities *= keep_mask(mask_seeds(key), rate, scores.shape) / (1 - rate)
        return jnp.einsum("bnqk,bknh->bqnh", probabilities, v)

    out, pull = jax.vjp(lambda *a: attention(*a, PREFIXES, dropout_rate=rate, dropout_key=key), q, k, v)
    expected, pull_plain = jax.vjp(plain, q, k, v)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    d_out = jax.random.normal(jax.random.key(6), out.shape)
    for actual, desired in zip(pull(d_out), pull_plain(d_out), strict=True):
        np.testing.assert_allclose(actual, desired, atol=2e-6)


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("backend", ["dense", "chunked"])
@pytest.mark.thorough
def test_a_known_longest_prefix_changes_nothing_but_the_work(qkv, backend, segments, monkeypatch):
    monkeypatch.setattr("glm_jax.model.dense_attention._MIN_KEYS_TO_SPLIT", 2)
    prefixes = jnp.array([0, 3, 6, 1], jnp.int32)
    ids = jnp.asarray(np.sort(np.random.default_rng(0).integers(0, 3, (B, T))), jnp.int32) if segments else None

    def attend(boundary, *qkv):
        return attention(*qkv, prefixes, longest_prefix=boundary, segment_ids=ids, backend=backend)

    expected, pull = jax.vjp(functools.partial(attend, None), *qkv)
    gradients = pull(jnp.cos(expected))
    for boundary in (0, 6, T - 1, T):
        actual, pull = jax.vjp(functools.partial(attend, boundary), *qkv)
        for a, b in zip((actual, *pull(jnp.cos(expected))), (expected, *gradients), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)
        if backend == "dense":
            work = str(jax.make_jaxpr(functools.partial(attend, boundary))(*qkv))
            assert (f"[{B},{N},{T},{T}]" in work) == (boundary in (0, T))


@pytest.mark.thorough
def test_a_known_longest_prefix_drops_both_parts_independently(qkv, monkeypatch):
    monkeypatch.setattr("glm_jax.model.dense_attention._MIN_KEYS_TO_SPLIT", 2)
    q, k, _ = qkv
    each_key = jnp.broadcast_to(jnp.eye(T, H)[None, :, None], (B, T, N, H))  # the result shows which keys were kept
    kept = attention(
        q, k, each_key, jnp.full(B, 6), longest_prefix=6, dropout_rate=0.5, dropout_key=jax.random.key(1)
    )  # fmt: skip
    assert not np.array_equal(kept[:, 0, :, :6] > 0, kept[:, 6, :, :6] > 0)


@pytest.mark.parametrize(
    ("kind", "keys", "dense"),
    [
        ("cpu", 4096, True),
        ("NVIDIA H200", 4096, True),
        ("TPU v5 lite", 64, False),
        ("TPU v6 lite", 64, False),
        ("TPU v5", 1024, True),
        ("TPU v5", 1025, False),
        ("TPU v5p", 1024, True),
    ],
)
def test_auto_goes_by_the_chip(monkeypatch, kind, keys, dense):
    for module in ("distributed.sharding", "model.attention"):
        monkeypatch.setattr(f"glm_jax.{module}.traced_device", lambda: types.SimpleNamespace(device_kind=kind))
    x = jax.ShapeDtypeStruct((1, keys, 2, 8), jnp.float32)
    scores = str(jax.make_jaxpr(lambda q: attention(q, q, q, jnp.ones(1, jnp.int32)))(x))
    assert (f"[1,2,{keys},{keys}]" in scores) == dense


def test_errors_name_the_way_out(qkv):
    q, k, v = qkv
    with pytest.raises(
        ValueError, match="unknown attention backend 'flesh'; known: auto, chunked, cudnn, dense, flash, splash"
    ):
        attention(q, k, v, PREFIXES, backend="flesh")
    with pytest.raises(ValueError, match="pass query_index"):
        attention(q[:, :2], k, v, PREFIXES)


@pytest.mark.thorough
@pytest.mark.parametrize("query_block", [1, 3, 384])
def test_chunks_of_any_size_give_dense_attention(qkv, query_block, monkeypatch):
    """Also with queries at some positions only, as the last layer asks."""
    q, k, v = qkv
    monkeypatch.setattr("glm_jax.model.dense_attention._QUERY_BLOCK", query_block)
    index = jnp.array([[0, 8, 3], [2, 2, 7], [1, 4, 6], [5, 0, 8]], jnp.int32)
    chosen = jnp.take_along_axis(q, index[:, :, None, None], axis=1)
    for queries, where in ((q, None), (chosen, index)):
        expected = attention(queries, k, v, PREFIXES, query_index=where, backend="dense")
        actual = attention(queries, k, v, PREFIXES, query_index=where, backend="chunked")
        np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_chunks_drop_out_independently():
    """Every part of the scores has randomness of its own, and the expectation is undisturbed."""
    ones = jnp.ones((2, 16, 4, 8))
    key = jax.random.key(3)
    out = attention(ones, ones, ones, jnp.array([16, 16]), backend="chunked", dropout_rate=0.5, dropout_key=key)
    by_head = out[0, :, :, 0]
    assert not np.array_equal(by_head[:, 0], by_head[:, 1])
    assert abs(float(out.mean()) - 1) < 0.05


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("somewhere", [False, True])
@pytest.mark.thorough
def test_cudnn_is_given_the_rule(monkeypatch, segments, somewhere):
    """Its mask, and the rows that fill its vectors: with XLA in its place, because there is no GPU here."""
    monkeypatch.setattr(
        "glm_jax.model.attention.traced_device", lambda: types.SimpleNamespace(device_kind="NVIDIA H200")
    )
    by_xla, shapes = jax.nn.dot_product_attention, []

    def stand_in(q, k, v, *, mask, implementation):
        assert implementation == "cudnn"
        shapes.append((q.shape, k.shape, mask.shape))
        return by_xla(q, k, v, mask=mask, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    rng = np.random.default_rng(4)
    q, k, v = (jnp.asarray(rng.normal(size=(B, 13, N, H)), jnp.bfloat16) for _ in range(3))
    ids = jnp.asarray(np.sort(rng.integers(0, 3, (B, 13))), jnp.int32) if segments else None
    index = jnp.asarray(rng.integers(0, 13, (B, 3)), jnp.int32) if somewhere else None
    q = q[:, :3] if somewhere else q
    prefixes = jnp.array([0, 3, 13, 1], jnp.int32)

    def attend(backend, *qkv):
        return attention(*qkv, prefixes, query_index=index, segment_ids=ids, backend=backend).astype(jnp.float32)

    actual, pull = jax.vjp(functools.partial(attend, "cudnn"), q, k, v)
    exact = [x.astype(jnp.float32) for x in (q, k, v)]
    expected, pull_exact = jax.vjp(functools.partial(attend, "dense"), *exact)
    d_out = jnp.asarray(rng.normal(size=expected.shape), jnp.float32)
    for a, b in zip((actual, *pull(d_out)), (expected, *pull_exact(d_out)), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.02 * np.abs(b).max())
    queries = 8 if somewhere else 16
    assert shapes == [((B, queries, N, H), (B, 16, N, H), (B, 1, queries, 16))]


def test_what_cudnn_cannot_do_is_refused(qkv, monkeypatch):
    q, k, v = qkv
    with pytest.raises(ValueError, match="needs an NVIDIA GPU, not 'cpu'"):
        attention(q, k, v, PREFIXES, backend="cudnn")
    monkeypatch.setattr(
        "glm_jax.model.attention.traced_device", lambda: types.SimpleNamespace(device_kind="NVIDIA H200")
    )
    with pytest.raises(ValueError, match=r"needs model.dtype 'bfloat16' or 'float16', not 'float32'"):
        attention(q, k, v, PREFIXES, backend="cudnn")
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    with pytest.raises(ValueError, match=r"set attention_dropout to 0, not 0.1, or choose attention_backend 'flash'"):
        attention(q, k, v, PREFIXES, backend="cudnn", dropout_rate=0.1, dropout_key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"heads of 8, 16, .*128 columns, not 6"):
        attention(q[..., :6], k[..., :6], v[..., :6], PREFIXES, backend="cudnn")
