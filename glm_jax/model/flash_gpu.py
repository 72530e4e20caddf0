"""GLM's attention as one kernel for Hopper GPUs: scores, softmax, dropout and their gradients never leave the chip.

Pallas on Mosaic GPU. A warpgroup takes a tile of 64 queries (for the gradients of keys and values, of 64 keys) and
walks over tiles of the other side, which TMA fetches ahead and WGMMA multiplies; several warpgroups share an SM, and
one multiplies while another computes its softmax. Where Part A ends is read at run time, row by row, and what the rule
hides from a whole tile is never fetched. The algorithm is FlashAttention-2's (Dao 2023, arXiv 2307.08691); two kernels
compute its gradients, because one would add them up in the order in which warpgroups happen to finish.
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
_HIDDEN = -1e30
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
    """As `attention.dense_attention` of all queries, with the same dropout mask on any mesh.

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

    def whole_tiles(x, axis):  # no query of the text sees what is added
        return jnp.pad(x, [(0, -length % _TILE if at == axis else 0) for at in range(x.ndim)])

    q, k, v = (whole_tiles(x, 1) for x in (q, k, v))
    extras = {name: whole_tiles(x, x.ndim - 1) for name, x in extras.items()}
    return _attend(q, k, v, prefix_lengths, extras, rate, interpret)[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q, k, v, prefix_lengths, extras, rate, interpret):
    """q, k, v [B P N H], int32 [B], and what there is of "segments" [B P], "row_words" [B N P], "column_words" [P]."""
    return _forward(q, k, v, prefix_lengths, extras, rate, interpret)[0]


def _attend_forward(q, k, v, prefix_lengths, extras, rate, interpret):
    out, sums = _forward(q, k, v, prefix_lengths, extras, rate, interpret)
    return out, (q, k, v, prefix_lengths, extras, out, sums)


def _attend_backward(rate, interpret, saved, d_out):
    q, k, v, prefix_lengths, extras, out, sums = saved
    correction = jnp.einsum("bqnh,bqnh->bnq", out, d_out, preferred_element_type=jnp.float32)
    of_queries = {"q": q, "d_out": d_out, "sums": sums, "correction": correction}
    sides = _with_extras(of_queries, {"k": k, "v": v}, extras)
    d_q = _queries_gradient(*sides, prefix_lengths, rate, interpret)
    d_k, d_v = _keys_gradients(*sides, prefix_lengths, rate, interpret)
    return d_q, d_k, d_v, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _with_extras(of_queries, of_keys, extras):
    """What a query and what a key brings along: its segment, and its half of the dropout mask's hash."""
    both = {"segments": extras["segments"]} if "segments" in extras else {}
    rows, columns = ({name: extras[name]} if name in extras else {} for name in ("row_words", "column_words"))
    return of_queries | both | rows, of_keys | both | columns


def _forward(q, k, v, prefix_lengths, extras, rate, interpret):
    """The result, and the logarithm (base 2) of the softmax's sums, float32 [B N P]."""
    scale, keep = q.shape[-1] ** -0.5, 1.0 - rate if "row_words" in extras else 1.0

    def start(prefix, first, own):
        hide, drop = (
            _hide(prefix, first, own, interpret, keys_first=False),
            _drop(own, rate, interpret, keys_first=False),
        )

        def step(key, tiles, carry, masked):
            total, largest, sums = carry
            scores = _product(own["q"], tiles["k"], interpret) * (_LOG2_E * scale)
            if masked:
                scores = hide(key, tiles, scores, _HIDDEN)
            now_largest = jnp.maximum(largest, jnp.max(scores, axis=1))
            shrink = jnp.exp2(largest - now_largest)
            powers = jnp.exp2(scores - _spread(now_largest, 0))
            sums = sums * shrink + jnp.sum(powers, axis=1)
            total = _add_product(total * _spread(shrink, 0), drop(tiles, powers).astype(q.dtype), tiles["v"], interpret)
            return total, now_largest, sums

        def finish(carry):
            total, largest, sums = carry
            return {"out": total / _spread(sums * keep, 0), "sums": largest + jnp.log(sums) * _LOG2_E}

        return (_zeros(), _column(-jnp.inf), _column(0.0)), step, finish

    results = {"out": (q.shape, q.dtype), "sums": (_vector_shape(q), jnp.float32)}
    of_queries, of_keys = _with_extras({"q": q}, {"k": k, "v": v}, extras)
    found = _launch(_from_queries, start, of_queries, of_keys, prefix_lengths, results, interpret)
    return found["out"], found["sums"]


def _queries_gradient(of_queries, of_keys, prefix_lengths, rate, interpret):
    q = of_queries["q"]
    scale = q.shape[-1] ** -0.5

    def start(prefix, first, own):
        hide, drop = (
            _hide(prefix, first, own, interpret, keys_first=False),
            _drop(own, rate, interpret, keys_first=False),
        )
        sums, correction = _along(own["sums"], 0, interpret), _along(own["correction"], 0, interpret)

        def step(key, tiles, total, masked):
            scores = _product(own["q"], tiles["k"], interpret) * (_LOG2_E * scale)
            powers = jnp.exp2(scores - _spread(sums, 0))
            if masked:
                powers = hide(key, tiles, powers, 0.0)
            d_powers = drop(tiles, _product(own["d_out"], tiles["v"], interpret), rescale=True)
            d_scores = powers * (d_powers - _spread(correction, 0))
            return _add_product(total, d_scores.astype(q.dtype), tiles["k"], interpret)

        return _zeros(), step, lambda total: {"d_q": total * scale}

    results = {"d_q": (q.shape, q.dtype)}
    return _launch(_from_queries, start, of_queries, of_keys, prefix_lengths, results, interpret)["d_q"]


def _keys_gradients(of_queries, of_keys, prefix_lengths, rate, interpret):
    """Scores turned around, [keys queries], so that they are the left factors of both products."""
    k, v = of_keys["k"], of_keys["v"]
    scale, keep = k.shape[-1] ** -0.5, 1.0 - rate if "row_words" in of_queries else 1.0

    def start(prefix, first, own):
        hide, drop = _hide(prefix, first, own, interpret, keys_first=True), _drop(own, rate, interpret, keys_first=True)

        def step(query, tiles, carry, masked):
            d_k, d_v = carry
            scores = _product(own["k"], tiles["q"], interpret) * (_LOG2_E * scale)
            powers = jnp.exp2(scores - _spread(_along(tiles["sums"], 1, interpret), 1))
            if masked:
                powers = hide(query, tiles, powers, 0.0)
            d_v = _add_product(d_v, drop(tiles, powers).astype(v.dtype), tiles["d_out"], interpret)
            d_powers = drop(tiles, _product(own["v"], tiles["d_out"], interpret), rescale=True)
            d_scores = powers * (d_powers - _spread(_along(tiles["correction"], 1, interpret), 1))
            return _add_product(d_k, d_scores.astype(k.dtype), tiles["q"], interpret), d_v

        def finish(carry):
            return {"d_k": carry[0] * scale, "d_v": carry[1] * (1.0 / keep)}

        return (_zeros(), _zeros()), step, finish

    results = {"d_k": (k.shape, k.dtype), "d_v": (v.shape, v.dtype)}
    found = _launch(_from_keys, start, of_keys, of_queries, prefix_lengths, results, interpret)
    return found["d_k"], found["d_v"]


def _from_queries(prefix, first, tiles):
    del tiles  # no query sees the last ones for sure
    return 0, lax.div(jnp.maximum(prefix, first + 1), _TILE), pl.cdiv(jnp.maximum(prefix, first + _TILE), _TILE), False


def _from_keys(prefix, first, tiles):
    own = lax.div(first, _TILE)
    begin = jnp.where(first < prefix, 0, own)
    return begin, jnp.where(first + _TILE <= prefix, begin, own + 1), tiles, True


def _launch(bounds: Callable, start: Callable, own, other, prefix_lengths, results, interpret):
    """Computes `results` with a warpgroup for each tile of `own`, head and row, which walks over tiles of `other`.

    `own`, `other`: arrays by name; `results`: shape and dtype by name. `bounds(prefix, first, tiles)`, where
    `first` is where the own tile begins, gives three numbers of tiles of the other side and whether the masked come
    first: those from the first number to the third concern this one, and up to the second or from it on no pair of them
    is hidden. `start(prefix, first, own)` gives the initial carry and two functions: `step`, from where the other tile
    begins, its arrays, the carry and whether pairs may be hidden to the next carry; and `finish`, from the last one to
    the results.
    """
    length = next(iter(own.values())).shape[1]

    def kernel(own_refs, other_refs, prefix_ref, result_refs):
        def scoped(own_tiles, other_tiles, result_tiles, own_ready, ready):
            b, n, first = lax.axis_index("row"), lax.axis_index("head"), lax.axis_index("tile") * _TILE
            prefix = prefix_ref[b]
            begin, middle, end, masked_first = bounds(prefix, first, length // _TILE)
            if "segments" in own:  # any tile may hold other texts
                middle = end if masked_first else begin

            for name, ref in own_refs.items():
                plgpu.copy_gmem_to_smem(ref.at[_place(ref, b, n, first)], own_tiles[name], own_ready)

            def fetch(tile):
                slot = lax.rem(tile, jnp.int32(_STAGES))
                for name, ref in other_refs.items():
                    source = ref.at[_place(ref, b, n, tile * _TILE)]
                    plgpu.copy_gmem_to_smem(source, other_tiles[name].at[slot], ready.at[slot])

            for stage in range(_STAGES):
                pl.when(begin + stage < end)(functools.partial(fetch, jnp.int32(begin + stage)))
            plgpu.barrier_wait(own_ready)
            carry, step, finish = start(prefix, first, own_tiles)

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
                plgpu.copy_smem_to_gmem(result_tiles[name], ref.at[_place(ref, b, n, first)])
            plgpu.wait_smem_to_gmem(0)

        pl.run_scoped(
            scoped,
            {name: _memory(x.shape, x.dtype) for name, x in own.items()},
            {name: _memory(x.shape, x.dtype, _STAGES) for name, x in other.items()},
            {name: _memory(*described) for name, described in results.items()},
            plgpu.Barrier(num_arrivals=len(own)),
            plgpu.Barrier(num_arrivals=len(other), num_barriers=_STAGES),
        )

    batch, heads = next(x for x in own.values() if x.ndim == 4).shape[::2]
    named = "out_type" if "out_type" in inspect.signature(plgpu.kernel).parameters else "out_shape"  # before JAX 0.12
    run = plgpu.kernel(
        kernel,
        **{named: {name: jax.ShapeDtypeStruct(*described) for name, described in results.items()}},
        grid=(length // _TILE, heads, batch),
        grid_names=("tile", "head", "row"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )
    return run(own, other, prefix_lengths)


def _place(ref, b, n, first):
    """The tile that begins at `first`, in [B P N H], [B N P], [B P] or [P]."""
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


def _product(x, y, interpret):
    """x yᵀ of two tiles in memory, float32 [64 64]."""
    if interpret is not None:  # interpreters know wgmma in part, and before JAX 0.12 hardly
        return _interpreted(x[...], y[...], 1)

    def multiply(sums):
        plgpu.wgmma(sums, x, y.transpose((1, 0)))
        return sums[...]

    return pl.run_scoped(multiply, plgpu.ACC((_TILE, _TILE), jnp.float32))


def _add_product(total, x, y, interpret):
    """total + x y, for x in registers and y in memory; into the same registers."""
    if interpret is not None:
        return total + _interpreted(x, y[...], 0)

    def multiply(sums):
        plgpu.wgmma(sums, x, y)

    return pl.run_state(multiply)(plgpu.ACC.init(total))


def _interpreted(x, y, axis):
    return lax.dot_general(x, y, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)


def _hide(prefix, first, own, interpret, *, keys_first):
    """A function (where the other tile begins, its vectors, x, value) -> x, but `value` where a query sees no key."""
    queries, keys = (1, 0) if keys_first else (0, 1)
    own_segments = _along(own["segments"], 0, interpret) if "segments" in own else None

    def hide(other, tiles, x, value):
        query, key = (other, first) if keys_first else (first, other)
        query += plgpu.broadcasted_iota(jnp.int32, x.shape, queries, layout=plgpu.Layout.WGMMA)
        key += plgpu.broadcasted_iota(jnp.int32, x.shape, keys, layout=plgpu.Layout.WGMMA)
        seen = key < jnp.maximum(prefix, query + 1)
        if own_segments is not None:
            pair = _spread(own_segments, 0), _spread(_along(tiles["segments"], 1, interpret), 1)
            seen &= (pair[0] == pair[1]) | (pair[keys] == 0)
        return jnp.where(seen, x, value)

    return hide


def _drop(own, rate, interpret, *, keys_first):
    """A function (the other tile's vectors, x) -> x without what dropout takes."""
    names = ("column_words", "row_words") if keys_first else ("row_words", "column_words")
    if names[0] not in own:
        return lambda tiles, x, rescale=False: x
    own_words = _along(own[names[0]], 0, interpret)

    def drop(tiles, x, rescale=False):
        kept = dropout_mask_from_hash(_spread(own_words, 0), _spread(_along(tiles[names[1]], 1, interpret), 1), rate)
        return jnp.where(kept, x * (1.0 / (1.0 - rate)) if rescale else x, 0.0)

    return drop


def _along(ref, axis, interpret):
    """[64] in memory -> the registers of the warpgroup, as the values along one axis of a tile."""
    if interpret is not None:
        return ref[...]
    index = ((),) if "idx" in inspect.signature(plgpu.load).parameters else ()  # before JAX 0.12
    return plgpu.load(ref, *index, layout=plgpu.Layout.WGMMA.reduce(1 - axis))


def _spread(x, axis):
    return lax.broadcast_in_dim(x, (_TILE, _TILE), (axis,))


def _zeros():
    return plgpu.layout_cast(jnp.zeros((_TILE, _TILE), jnp.float32), plgpu.Layout.WGMMA)


def _column(value):
    return plgpu.layout_cast(jnp.full((_TILE,), value, jnp.float32), plgpu.Layout.WGMMA.reduce(1))
