"""The head and its cross entropy in one: logits of a few targets at a time, never of all.

The weight of every target is known beforehand, so one pass gives the loss and its gradients: no logits wait for the
backward pass, and none are computed twice. Slots without a target are sorted to the end and skipped.
"""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from glm_jax.distributed.sharding import on_tpu, partition_spec, rule_axes
from glm_jax.model.losses import check_label_smoothing
from glm_jax.model.ops import matmul, matmul_tn, precision

# Targets of a part. Where the table fits a cache small parts keep their logits there too; else a part must be large
# enough that reading the table is less work than multiplying with it.
_SMALL_TABLE_BYTES, _FEW_TARGETS, _MANY_TARGETS = 2**24, 256, 2048
_EIGHTHS = (8, 7, 6)  # of that: the sizes that a part may have


@flax.struct.dataclass
class TargetLosses:
    """What `fused_linear_cross_entropy` gives. Only `total` can be differentiated."""

    total: Any  # float32 [], the sum of `losses`
    losses: Any  # float32 [B K], weight · -log p(target) in nats
    correct: Any  # bool [B K], whether the target has the largest logit; None where that was not asked for


def fused_linear_cross_entropy(
    hidden: Float[Array, "B K D"],
    table: Float[Array, "V D"],
    target_ids: Int[Array, "B K"],
    target_weights: Float[Array, "B K"],
    *,
    label_smoothing: float = 0.0,
    score: bool = False,
) -> TargetLosses:
    """`loss.cross_entropy` of the logits `hidden` · `table`ᵀ.

    Products take their inputs in the dtype of `hidden`; logits, softmax and sums are float32. Over a mesh every device
    works on its own rows and its part of the vocabulary, as the rules for "batch" and "vocab" say. `score` fills
    `correct`, which costs a pass over the logits. Raises ValueError for a label smoothing outside [0, 1).
    """
    check_label_smoothing(label_smoothing)
    return _fused_linear_cross_entropy(
        hidden, table, target_ids, target_weights.astype(jnp.float32), label_smoothing, score
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _fused_linear_cross_entropy(hidden, table, target_ids, target_weights, label_smoothing, score):
    return _everywhere(hidden, table, target_ids, target_weights, label_smoothing, score, False)[0]


def _forward(hidden, table, target_ids, target_weights, label_smoothing, score):
    return _everywhere(hidden, table, target_ids, target_weights, label_smoothing, score, True)


def _backward(label_smoothing, score, gradients, d_result):
    d_hidden, d_table = gradients
    scale = d_result.total
    return (d_hidden * scale).astype(d_hidden.dtype), d_table * scale, None, None


_fused_linear_cross_entropy.defvjp(_forward, _backward)


def _everywhere(hidden, table, ids, weights, smoothing, score, gradients):
    """(TargetLosses, (d_hidden, d_table) or None), each device on its own part."""
    mesh, rules = jax.sharding.get_abstract_mesh(), dict(nn.get_logical_axis_rules())
    local = functools.partial(_local, smoothing=smoothing, score=score, gradients=gradients)
    # In the compute dtype before rows of the table are gathered.
    narrow = table.astype(hidden.dtype)
    if mesh.empty or not rules:
        total, losses, correct, d_hidden, d_table = local(hidden, narrow, ids, weights)
    else:
        # Without axes of one device, over which a collective is a copy.
        batch, vocab = ([a for a in rule_axes(axis, rules) if mesh.shape[a] > 1] for axis in ("batch", "vocab"))
        rows, whole = partition_spec(("batch",), rules), PartitionSpec()
        # Sums over rows end where the parameter lies: scattered over those of the batch's axes that split "embed".
        scattered = tuple(axis for axis in rule_axes("embed", rules) if axis in batch)
        split_table = partition_spec(("vocab", None), rules)
        out_table = PartitionSpec(split_table[0] if len(split_table) else None, scattered or None)
        local = functools.partial(local, batch_axes=tuple(batch), vocab_axes=tuple(vocab), scattered=scattered)
        total, losses, correct, d_hidden, d_table = jax.shard_map(
            local, mesh=mesh, in_specs=(rows, split_table, rows, rows),
            out_specs=(whole, rows, rows if score else whole, *((rows, out_table) if gradients else (whole, whole))),
            check_vma=False,
        )(hidden, narrow, ids, weights)  # fmt: skip
    return TargetLosses(total, losses, correct), (d_hidden, d_table) if gradients else None


def _local(hidden, table, ids, weights, *, smoothing, score, gradients, batch_axes=(), vocab_axes=(), scattered=()):
    shape, (vocab, width) = ids.shape, table.shape
    count = ids.size
    hidden, ids, weights = hidden.reshape(count, width), ids.reshape(count), weights.reshape(count)
    first = vocab * jax.lax.axis_index(vocab_axes) if vocab_axes else 0  # the first word of this device
    part = functools.partial(
        _part, table, first=first, axes=vocab_axes, smoothing=smoothing, score=score, gradients=gradients
    )

    most = _FEW_TARGETS if table.nbytes <= _SMALL_TABLE_BYTES else _MANY_TARGETS
    if count <= most:
        losses, correct, d_hidden, d_table = part(hidden, ids, weights)
    else:
        nothing = (
            jnp.zeros(count, jnp.float32),
            jnp.zeros(count, bool) if score else None,
            jnp.zeros((count, width), hidden.dtype) if gradients else None,
        )
        nothing_of_table = jnp.zeros((width, vocab), jnp.float32) if gradients else None
        losses, correct, d_hidden, d_table = _in_parts(part, most, (hidden, ids, weights), nothing, nothing_of_table)

    total = jnp.sum(losses)
    if batch_axes:
        total = jax.lax.psum(total, batch_axes)
    if gradients:
        if vocab_axes:
            d_hidden = jax.lax.psum(d_hidden, vocab_axes)
        d_hidden = d_hidden.reshape(*shape, width)
        d_table = jnp.swapaxes(d_table, 0, 1)
        for axis in scattered:  # in the order in which the parameter is split
            d_table = jax.lax.psum_scatter(d_table, axis, scatter_dimension=1, tiled=True)
        if others := tuple(axis for axis in batch_axes if axis not in scattered):
            d_table = jax.lax.psum(d_table, others)
    return total, losses.reshape(shape), correct.reshape(shape) if score else None, d_hidden, d_table


def _in_parts(part, most, arrays, nothing, d_table):
    """What `part` gives of all targets, `most` at a time or fewer; `nothing` and `d_table` are where that begins."""
    weights = arrays[-1]
    count = weights.size
    # A plan for a TPU counts what it knows to run: there all parts do, and are of one size. Elsewhere parts without a
    # target are skipped, and the size is the one whose last part has the fewest slots left.
    sizes = [-(-count // -(-count // most))] if on_tpu() else [size for n in _EIGHTHS if (size := most * n // 8)]
    room = max(-(-count // size) * size for size in sizes)
    order = jnp.argsort(weights == 0.0, stable=True)  # slots without a target come last
    place = jnp.argsort(order)

    def padded(a):
        return jnp.pad(a, ((0, room - count), *((0, 0),) * (a.ndim - 1)))

    arrays = [padded(a[order]) for a in arrays]
    nothing = jax.tree.map(padded, nothing), d_table

    def in_parts_of(size, used):
        def add(number, done):
            results, d_table = done
            *found, d_part = part(*(jax.lax.dynamic_slice_in_dim(a, number * size, size) for a in arrays))
            results = jax.tree.map(
                lambda into, value: jax.lax.dynamic_update_slice_in_dim(into, value, number * size, 0),
                results,
                tuple(found),
            )
            return results, None if d_table is None else d_table + d_part

        return jax.lax.fori_loop(0, -(-used // size), add, nothing)

    if len(sizes) == 1:
        results, d_table = in_parts_of(*sizes, count)
    else:
        used = jnp.sum(weights != 0.0)
        smallest = jnp.argmin(jnp.stack([-(-used // size) * size for size in sizes]))
        results, d_table = jax.lax.switch(smallest, [functools.partial(in_parts_of, size) for size in sizes], used)
    return *jax.tree.map(lambda a: a[place], results), d_table


def _part(table, hidden, ids, weights, *, first, axes, smoothing, score, gradients):
    """Losses [M], hits [M], and gradients [M D] and [D V] of M targets."""

    def over_words(values, reduce, collective):
        found = reduce(values, axis=-1)
        return collective(found, axes) if axes else found

    logits = matmul(hidden, table, (1,), (1,), "float32")
    largest = over_words(logits, jnp.max, jax.lax.pmax)
    powers = jnp.exp(logits - largest[:, None])
    sums = over_words(powers, jnp.sum, jax.lax.psum)
    is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == (ids - first)[:, None]

    def from_logits():
        return over_words(jnp.where(is_target, logits, 0.0), jnp.sum, jax.lax.psum)

    def from_rows():  # on CPU a pass over all logits costs more than the few products that gave the wanted ones
        rows = table[ids]
        return jnp.einsum("md,md->m", hidden, rows, precision=precision(hidden), preferred_element_type=jnp.float32)

    own = from_logits() if axes else jax.lax.platform_dependent(cpu=from_rows, default=from_logits)
    wanted = own
    words = logits.shape[1] * (jax.lax.axis_size(axes) if axes else 1)
    if smoothing:
        mean = over_words(logits, jnp.sum, jax.lax.psum) / words
        wanted = (1.0 - smoothing) * own + smoothing * mean
    losses = weights * (largest + jnp.log(sums) - wanted)
    correct = None
    if score:
        # The first of equal logits, as argmax has it.
        place = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) + first
        places = jnp.where(logits == largest[:, None], place, words)
        correct = over_words(places, jnp.min, jax.lax.pmin) == ids
    if not gradients:
        return losses, correct, None, None
    d_logits = powers * (weights / sums)[:, None] - jnp.where(is_target, (1.0 - smoothing) * weights[:, None], 0.0)
    if smoothing:
        d_logits = d_logits - (smoothing / words) * weights[:, None]
    d_logits = d_logits.astype(hidden.dtype)
    d_hidden = matmul(d_logits, table, (1,), (0,), hidden.dtype)
    return losses, correct, d_hidden, matmul_tn(hidden, d_logits, "float32")
