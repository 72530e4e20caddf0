"""GLM's attention as one kernel for Hopper GPUs: scores, softmax, dropout and their gradients never leave the chip.

Pallas on Mosaic GPU. A warpgroup owns a local tile of 64 queries (for the gradients of keys and values, of 64 keys) and
loops over tiles of the other side, which TMA prefetches and WGMMA multiplies. Several warpgroups share an SM: one
multiplies while another computes its softmax. The length of Part A is read at run time, row by row, and tiles that are
masked as a whole are never fetched. The algorithm is FlashAttention-2 (Dao 2023, arXiv 2307.08691). Two kernels compute
its gradients, because one would sum them in the order in which warpgroups happen to finish.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from glm_jax.distributed.sharding import on_each_device
from glm_jax.model.dropout import dropout_mask_from_hash, mask_seeds, mask_words

_TILE = 64  # queries, keys, and columns of a head: what one WGMMA instruction multiplies
_STAGES = 2  # tiles of the other side in shared memory: one is read while the next arrives
_MASKED = -1e30
_LOG2_E = math.log2(math.e)


def flash_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    prefix_lengths: Int[Array, "B"],
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Any | None = None,
    interpret: Any = None,
) -> Float[Array, "B T N H"]:
    """As `dense_attention` of all queries, with the same dropout mask on any mesh.

    bfloat16 or float16; H is 64, as in all models of the paper. Rows and heads are split over the mesh as the rules for
    "batch" and "heads" say. With `interpret`, Pallas' InterpretGPUParams, the kernel runs without a GPU, very slowly.
    """
    batch, length, heads, _ = q.shape
    split, rows = ["batch", None, "heads"], ["batch"]
    extras, extra_axes = {}, {}
    if segment_ids is not None:
        extras["segments"], extra_axes["segments"] = segment_ids.astype(jnp.int32), rows
    if dropout_key is not None and dropout_rate:
        extras["row_words"], extras["column_words"] = mask_words(
            mask_seeds(dropout_key), (batch, heads, length, length)
        )
        extra_axes |= {"row_words": ["batch", "heads"], "column_words": []}
    local = functools.partial(_local, rate=dropout_rate, interpret=interpret)
    run = on_each_device(local, (split, split, split, rows, extra_axes), split)
    return run(q, k, v, prefix_lengths.astype(jnp.int32), extras)


def _local(q, k, v, prefix_lengths, extras, *, rate, interpret):
    length = q.shape[1]

    def whole_tiles(x, axis):  # no query of the text sees the padding
        return jnp.pad(x, [(0, -length % _TILE if at == axis else 0) for at in range(x.ndim)])

    q, k, v = (whole_tiles(x, 1) for x in (q, k, v))
    extras = {name: whole_tiles(x, x.ndim - 1) for name, x in extras.items()}
    return _attend(q, k, v, prefix_lengths, extras, rate, interpret)[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q, k, v, prefix_lengths, extras, rate, interpret):
    """q, k, v [B P N H], int32 [B], and any of "segments" [B P], "row_words" [B N P], "column_words" [P]."""
    return _forward(q, k, v, prefix_lengths, extras, rate, interpret)[0]


def _attend_forward(q, k, v, prefix_lengths, extras, rate, interpret):
    out, log_denominator = _forward(q, k, v, prefix_lengths, extras, rate, interpret)
    return out, (q, k, v, prefix_lengths, extras, out, log_denominator)


def _attend_backward(rate, interpret, saved, d_out):
    q, k, v, prefix_lengths, extras, out, log_denominator = saved
    correction = jnp.einsum("bqnh,bqnh->bnq", out, d_out, preferred_element_type=jnp.float32)
    query_arrays = {"q": q, "d_out": d_out, "log_denominator": log_denominator, "correction": correction}
    sides = _with_extras(query_arrays, {"k": k, "v": v}, extras)
    d_q = _queries_gradient(*sides, prefix_lengths, rate, interpret)
    d_k, d_v = _keys_gradients(*sides, prefix_lengths, rate, interpret)
    return d_q, d_k, d_v, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _with_extras(query_arrays, key_arrays, extras):
    """Adds to the arrays of queries and of keys their segments, and their half of the dropout mask's hash."""
    both = {"segments": extras["segments"]} if "segments" in extras else {}
    rows, columns = ({name: extras[name]} if name in extras else {} for name in ("row_words", "column_words"))
    return query_arrays | both | rows, key_arrays | both | columns


def _forward(q, k, v, prefix_lengths, extras, rate, interpret):
    """The result, and the logarithm (base 2) of the softmax's denominator, float32 [B N P]."""
    scale, keep = q.shape[-1] ** -0.5, 1.0 - rate if "row_words" in extras else 1.0

    def start(prefix, first, local):
        mask, drop = (
            _masker(prefix, first, local, interpret, keys_first=False),
            _drop(local, rate, interpret, keys_first=False),
        )

        def step(key, tiles, carry, masked):
            total, max_score, denominator = carry
            scores = _matmul(local["q"], tiles["k"], interpret) * (_LOG2_E * scale)
            if masked:
                scores = mask(key, tiles, scores, _MASKED)
            new_max = jnp.maximum(max_score, jnp.max(scores, axis=1))
            rescale_factor = jnp.exp2(max_score - new_max)
            exp_scores = jnp.exp2(scores - _broadcast(new_max, 0))
            denominator = denominator * rescale_factor + jnp.sum(exp_scores, axis=1)
            total = _add_matmul(
                total * _broadcast(rescale_factor, 0), drop(tiles, exp_scores).astype(q.dtype), tiles["v"], interpret
            )
            return total, new_max, denominator

        def finish(carry):
            total, max_score, denominator = carry
            return {
                "out": total / _broadcast(denominator * keep, 0),
                "log_denominator": max_score + jnp.log(denominator) * _LOG2_E,
            }

        return (_zeros(), _column(-jnp.inf), _column(0.0)), step, finish

    results = {"out": (q.shape, q.dtype), "log_denominator": (_vector_shape(q), jnp.float32)}
    query_arrays, key_arrays = _with_extras({"q": q}, {"k": k, "v": v}, extras)
    outputs = _launch(_from_queries, start, query_arrays, key_arrays, prefix_lengths, results, interpret)
    return outputs["out"], outputs["log_denominator"]


def _queries_gradient(query_arrays, key_arrays, prefix_lengths, rate, interpret):
    q = query_arrays["q"]
    scale = q.shape[-1] ** -0.5

    def start(prefix, first, local):
        mask, drop = (
            _masker(prefix, first, local, interpret, keys_first=False),
            _drop(local, rate, interpret, keys_first=False),
        )
        log_denominator, correction = (
            _load_vector(local["log_denominator"], 0, interpret),
            _load_vector(local["correction"], 0, interpret),
        )

        def step(key, tiles, total, masked):
            scores = _matmul(local["q"], tiles["k"], interpret) * (_LOG2_E * scale)
            probabilities = jnp.exp2(scores - _broadcast(log_denominator, 0))
            if masked:
                probabilities = mask(key, tiles, probabilities, 0.0)
            d_probabilities = drop(tiles, _matmul(local["d_out"], tiles["v"], interpret), rescale=True)
            d_scores = probabilities * (d_probabilities - _broadcast(correction, 0))
            return _add_matmul(total, d_scores.astype(q.dtype), tiles["k"], interpret)

        return _zeros(), step, lambda total: {"d_q": total * scale}

    results = {"d_q": (q.shape, q.dtype)}
    return _launch(_from_queries, start, query_arrays, key_arrays, prefix_lengths, results, interpret)["d_q"]


def _keys_gradients(query_arrays, key_arrays, prefix_lengths, rate, interpret):
    """Scores are transposed, [keys queries], so that they are the left operands of both matmuls."""
    k, v = key_arrays["k"], key_arrays["v"]
    scale, keep = k.shape[-1] ** -0.5, 1.0 - rate if "row_words" in query_arrays else 1.0

    def start(prefix, first, local):
        mask, drop = (
            _masker(prefix, first, local, interpret, keys_first=True),
            _drop(local, rate, interpret, keys_first=True),
        )

        def step(query, tiles, carry, masked):
            d_k, d_v = carry
            scores = _matmul(local["k"], tiles["q"], interpret) * (_LOG2_E * scale)
            probabilities = jnp.exp2(scores - _broadcast(_load_vector(tiles["log_denominator"], 1, interpret), 1))
            if masked:
                probabilities = mask(query, tiles, probabilities, 0.0)
            d_v = _add_matmul(d_v, drop(tiles, probabilities).astype(v.dtype), tiles["d_out"], interpret)
            d_probabilities = drop(tiles, _matmul(local["v"], tiles["d_out"], interpret), rescale=True)
            d_scores = probabilities * (
                d_probabilities - _broadcast(_load_vector(tiles["correction"], 1, interpret), 1)
            )
            return _add_matmul(d_k, d_scores.astype(k.dtype), tiles["q"], interpret), d_v

        def finish(carry):
            return {"d_k": carry[0] * scale, "d_v": carry[1] * (1.0 / keep)}

        return (_zeros(), _zeros()), step, finish

    results = {"d_k": (k.shape, k.dtype), "d_v": (v.shape, v.dtype)}
    outputs = _launch(_from_keys, start, key_arrays, query_arrays, prefix_lengths, results, interpret)
    return outputs["d_k"], outputs["d_v"]


def _from_queries(prefix, first, tiles):
    del tiles  # the last tiles may be invisible to every query
    return 0, lax.div(jnp.maximum(prefix, first + 1), _TILE), pl.cdiv(jnp.maximum(prefix, first + _TILE), _TILE), False


def _from_keys(prefix, first, tiles):
    diagonal = lax.div(first, _TILE)
    begin = jnp.where(first < prefix, 0, diagonal)
    return begin, jnp.where(first + _TILE <= prefix, begin, diagonal + 1), tiles, True


def _launch(bounds: Callable, start: Callable, local, other, prefix_lengths, results, interpret):
    """Computes `results` with a warpgroup for each tile of `local`, head and row, which loops over tiles of `other`.

    Args:
      bounds: (prefix, first, tiles) -> begin, middle, end, masked_first, where `first` is the first position of the
        local tile. The tiles begin to end of the other side are visited; those before `middle` (if `masked_first`), or
        else from it on, may hold masked pairs.
      start: (prefix, first, local) -> carry, step, finish, where step(first position of the other tile, its arrays,
        carry, masked) -> carry, and finish(carry) -> results by name.
      local, other: arrays by name.
      prefix_lengths: int32 [B].
      results: shape and dtype by name.
      interpret: None, or Pallas' InterpretGPUParams.
    """
    length = next(iter(local.values())).shape[1]

    def kernel(local_refs, other_refs, prefix_ref, result_refs):
        def scoped(local_tiles, other_tiles, result_tiles, local_ready, ready):
            b, n, first = lax.axis_index("row"), lax.axis_index("head"), lax.axis_index("tile") * _TILE
            prefix = prefix_ref[b]
            begin, middle, end, masked_first = bounds(prefix, first, length // _TILE)
            if "segments" in local:  # any tile may hold other texts
                middle = end if masked_first else begin

            for name, ref in local_refs.items():
                plgpu.copy_gmem_to_smem(ref.at[_tile_index(ref, b, n, first)], local_tiles[name], local_ready)

            def fetch(tile):
                slot = lax.rem(tile, jnp.int32(_STAGES))
                for name, ref in other_refs.items():
                    source = ref.at[_tile_index(ref, b, n, tile * _TILE)]
                    plgpu.copy_gmem_to_smem(source, other_tiles[name].at[slot], ready.at[slot])

            for stage in range(_STAGES):
                pl.when(begin + stage < end)(functools.partial(fetch, jnp.int32(begin + stage)))
            plgpu.barrier_wait(local_ready)
            carry, step, finish = start(prefix, first, local_tiles)

            def visit(tile, carry, *, masked):
                slot = lax.rem(tile, jnp.int32(_STAGES))
                plgpu.barrier_wait(ready.at[slot])
                carry = step(tile * _TILE, {name: ref.at[slot] for name, ref in other_tiles.items()}, carry, masked)
                plgpu.commit_smem()  # all four warps are done with the slot
                pl.when(tile + _STAGES < end)(lambda: fetch(tile + _STAGES))
                return carry

            carry = lax.fori_loop(begin, middle, functools.partial(visit, masked=masked_first), carry)
            carry = lax.fori_loop(middle, end, functools.partial(visit, masked=not masked_first), carry)
            for name, value in finish(carry).items():
                result_tiles[name][...] = value.astype(result_refs[name].dtype)
            plgpu.commit_smem()
            for name, ref in result_refs.items():
                plgpu.copy_smem_to_gmem(result_tiles[name], ref.at[_tile_index(ref, b, n, first)])
            plgpu.wait_smem_to_gmem(0)

        pl.run_scoped(
            scoped,
            {name: _memory(x.shape, x.dtype) for name, x in local.items()},
            {name: _memory(x.shape, x.dtype, _STAGES) for name, x in other.items()},
            {name: _memory(*described) for name, described in results.items()},
            plgpu.Barrier(num_arrivals=len(local)),
            plgpu.Barrier(num_arrivals=len(other), num_barriers=_STAGES),
        )

    batch, heads = next(x for x in local.values() if x.ndim == 4).shape[::2]
    out_argument = "out_type" if "out_type" in inspect.signature(plgpu.kernel).parameters else "out_shape"  # JAX < 0.12
    run = plgpu.kernel(
        kernel,
        **{out_argument: {name: jax.ShapeDtypeStruct(*described) for name, described in results.items()}},
        grid=(length // _TILE, heads, batch),
        grid_names=("tile", "head", "row"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )
    return run(local, other, prefix_lengths)


def _tile_index(ref, b, n, first):
    """The index of the tile that begins at `first`, in [B P N H], [B N P], [B P] or [P]."""
    tile = pl.ds(first, _TILE)
    return {4: (b, tile, n), 3: (b, n, tile), 2: (b, tile), 1: (tile,)}[len(ref.shape)]


def _memory(shape, dtype, *stages):
    if len(shape) < 4:
        return plgpu.SMEM((*stages, _TILE), dtype)
    transforms = plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)
    return plgpu.SMEM((*stages, _TILE, shape[-1]), dtype, transforms=transforms)


def _vector_shape(q):
    batch, length, heads, _ = q.shape
    return batch, heads, length


def _matmul(x, y, interpret):
    """x yᵀ of two tiles in memory, float32 [64 64]."""
    if interpret is not None:  # interpreters support wgmma only in part
        return _interpreted(x[...], y[...], 1)

    def multiply(accumulator):
        plgpu.wgmma(accumulator, x, y.transpose((1, 0)))
        return accumulator[...]

    return pl.run_scoped(multiply, plgpu.ACC((_TILE, _TILE), jnp.float32))


def _add_matmul(total, x, y, interpret):
    """total + x y, for x in registers and y in memory; into the same registers."""
    if interpret is not None:
        return total + _interpreted(x, y[...], 0)

    def multiply(accumulator):
        plgpu.wgmma(accumulator, x, y)

    return pl.run_state(multiply)(plgpu.ACC.init(total))


def _interpreted(x, y, axis):
    return lax.dot_general(x, y, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)


def _masker(prefix, first, local, interpret, *, keys_first):
    """A function (first position of the other tile, its vectors, x, value) -> x, with `value` at masked pairs."""
    queries, keys = (1, 0) if keys_first else (0, 1)
    local_segments = _load_vector(local["segments"], 0, interpret) if "segments" in local else None

    def mask(other, tiles, x, value):
        query, key = (other, first) if keys_first else (first, other)
        query += plgpu.broadcasted_iota(jnp.int32, x.shape, queries, layout=plgpu.Layout.WGMMA)
        key += plgpu.broadcasted_iota(jnp.int32, x.shape, keys, layout=plgpu.Layout.WGMMA)
        visible = key < jnp.maximum(prefix, query + 1)
        if local_segments is not None:
            pair = _broadcast(local_segments, 0), _broadcast(_load_vector(tiles["segments"], 1, interpret), 1)
            visible &= (pair[0] == pair[1]) | (pair[keys] == 0)
        return jnp.where(visible, x, value)

    return mask


def _drop(local, rate, interpret, *, keys_first):
    """A function (the other tile's vectors, x) -> x after dropout."""
    names = ("column_words", "row_words") if keys_first else ("row_words", "column_words")
    if names[0] not in local:
        return lambda tiles, x, rescale=False: x
    local_words = _load_vector(local[names[0]], 0, interpret)

    def drop(tiles, x, rescale=False):
        kept = dropout_mask_from_hash(
            _broadcast(local_words, 0), _broadcast(_load_vector(tiles[names[1]], 1, interpret), 1), rate
        )
        return jnp.where(kept, x * (1.0 / (1.0 - rate)) if rescale else x, 0.0)

    return drop


def _load_vector(ref, axis, interpret):
    """Loads [64] into the registers of the warpgroup, as the values along one axis of a tile."""
    if interpret is not None:
        return ref[...]
    index = ((),) if "idx" in inspect.signature(plgpu.load).parameters else ()  # JAX < 0.12
    return plgpu.load(ref, *index, layout=plgpu.Layout.WGMMA.reduce(1 - axis))


def _broadcast(x, axis):
    return lax.broadcast_in_dim(x, (_TILE, _TILE), (axis,))


def _zeros():
    return plgpu.layout_cast(jnp.zeros((_TILE, _TILE), jnp.float32), plgpu.Layout.WGMMA)


def _column(value):
    return plgpu.layout_cast(jnp.full((_TILE,), value, jnp.float32), plgpu.Layout.WGMMA.reduce(1))
