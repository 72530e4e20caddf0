"""The head fused with its cross entropy: logits of a few targets at a time, never of all.

The weight of every target is known in advance, so one pass gives the loss and its gradients: no logits are stored for
the backward pass, and none are computed twice. From top to bottom: split over the mesh (`_over_mesh`), one device's
targets and words (`_on_device`), chunk after chunk (`_in_chunks`), one chunk (`_chunk`).
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from glm_jax.distributed.sharding import on_tpu, partition_spec, rule_axes
from glm_jax.model.checks import check_array, check_label_smoothing
from glm_jax.model.gradients import custom_vjp, uses_reference
from glm_jax.model.ops import matmul, matmul_tn, precision

# Targets of a chunk. Where the table fits a cache, small chunks keep their logits there too. Otherwise a chunk must be
# so large that reading the table takes less time than multiplying with it.
_SMALL_TABLE_BYTES, _SMALL_CHUNK, _LARGE_CHUNK = 2**24, 256, 2048
_EIGHTHS = (8, 7, 6)  # of that: the sizes that a chunk may have


@flax.struct.dataclass
class TargetLosses:
    """The result of `fused_linear_cross_entropy`. Only `total` can be differentiated."""

    total: Any  # float32 [], the sum of `losses`
    losses: Any  # float32 [B K], weight · -log p(target) in nats
    correct: Any  # bool [B K], whether the target has the largest logit; None where that was not asked for


class _Options(NamedTuple):
    label_smoothing: float
    score: bool  # fill `correct`
    gradients: bool  # compute them


class _Axes(NamedTuple):
    """Mesh axes of more than one device."""

    batch: tuple[str, ...] = ()  # that split the rows
    vocab: tuple[str, ...] = ()  # that split the table's words
    scattered: tuple[str, ...] = ()  # of `batch`, those that split the parameter along D


class _Results(NamedTuple):
    """Of some targets; M is their number."""

    losses: Any  # float32 [M]
    correct: Any  # bool [M], or None
    d_hidden: Any  # [M D] in the dtype of the hidden states, or None
    d_table: Any  # float32 [D V], or None: the sum over the targets


def fused_linear_cross_entropy(
    hidden: Float[Array, "B K D"],
    table: Float[Array, "V D"],
    target_ids: Int[Array, "B K"],
    target_weights: Float[Array, "B K"],
    *,
    label_smoothing: float = 0.0,
    score: bool = False,
) -> TargetLosses:
    """`losses.cross_entropy` of the logits `hidden` · `table`ᵀ.

    Matmuls take their inputs in the dtype of `hidden`; logits, softmax and sums are float32. On a mesh every device
    works on its own rows and its part of the vocabulary, as the rules for "batch" and "vocab" say. `score` fills
    `correct`, which costs a pass over the logits. Raises ValueError for a label smoothing outside [0, 1), and for
    arrays whose shapes do not belong together.
    """
    check_label_smoothing(label_smoothing)
    check_array("hidden", hidden, "B K D", (None, None, None), jnp.floating)
    check_array("table", table, "V D", (None, hidden.shape[2]), jnp.floating)
    check_array("target_ids", target_ids, "B K", hidden.shape[:2], jnp.integer)
    check_array("target_weights", target_weights, "B K", hidden.shape[:2], jnp.floating)
    return _fused(hidden, table, target_ids, target_weights.astype(jnp.float32), label_smoothing, score)


@functools.partial(custom_vjp, nondiff_argnums=(4, 5))
def _fused(hidden, table, target_ids, target_weights, label_smoothing, score):
    options = _Options(label_smoothing, score, gradients=False)
    return _over_mesh(hidden, table, target_ids, target_weights, options)[0]


def _forward(hidden, table, target_ids, target_weights, label_smoothing, score):
    options = _Options(label_smoothing, score, gradients=True)
    return _over_mesh(hidden, table, target_ids, target_weights, options)


def _backward(label_smoothing, score, gradients, d_result):
    d_hidden, d_table = gradients
    scale = d_result.total
    return (d_hidden * scale).astype(d_hidden.dtype), d_table * scale, None, None


_fused.defvjp(_forward, _backward)


def _over_mesh(hidden, table, ids, weights, options):
    """(TargetLosses, (d_hidden, d_table) or None), each device on its own rows and words."""
    mesh, rules = jax.sharding.get_abstract_mesh(), dict(nn.get_logical_axis_rules())
    local = functools.partial(_on_device, options=options)
    table = table.astype(hidden.dtype)  # before its rows are gathered
    if mesh.empty or not rules:
        total, losses, correct, d_hidden, d_table = local(hidden, table, ids, weights, axes=_Axes())
    else:
        # Without axes of one device, over which a collective is a copy.
        batch, vocab = (tuple(a for a in rule_axes(axis, rules) if mesh.shape[a] > 1) for axis in ("batch", "vocab"))
        rows, whole = partition_spec(("batch",), rules), PartitionSpec()
        # Sums over rows end where the parameter is: scattered over those of the batch's axes that split "embed".
        scattered = tuple(axis for axis in rule_axes("embed", rules) if axis in batch)
        split_table = partition_spec(("vocab", None), rules)
        out_table = PartitionSpec(split_table[0] if len(split_table) else None, scattered or None)
        out_gradients = (rows, out_table) if options.gradients else (whole, whole)
        total, losses, correct, d_hidden, d_table = jax.shard_map(
            functools.partial(local, axes=_Axes(batch, vocab, scattered)), mesh=mesh,
            in_specs=(rows, split_table, rows, rows),
            out_specs=(whole, rows, rows if options.score else whole, *out_gradients),
            check_vma=False,
        )(hidden, table, ids, weights)  # fmt: skip
    return TargetLosses(total, losses, correct), (d_hidden, d_table) if options.gradients else None


def _on_device(hidden, table, ids, weights, *, options, axes):
    """Total, losses, correct, d_hidden, d_table of one device's rows and words, summed over the mesh."""
    shape, (vocab, width) = ids.shape, table.shape
    count = ids.size
    hidden, ids, weights = hidden.reshape(count, width), ids.reshape(count), weights.reshape(count)
    first_word = vocab * jax.lax.axis_index(axes.vocab) if axes.vocab else 0
    chunk = functools.partial(_chunk, table, first_word=first_word, vocab_axes=axes.vocab, options=options)

    limit = _SMALL_CHUNK if table.nbytes <= _SMALL_TABLE_BYTES else _LARGE_CHUNK
    if count <= limit or uses_reference():  # a loop of unknown length has no reverse mode
        results = chunk(hidden, ids, weights)
    else:
        zeros = _Results(
            jnp.zeros(count, jnp.float32),
            jnp.zeros(count, bool) if options.score else None,
            jnp.zeros((count, width), hidden.dtype) if options.gradients else None,
            jnp.zeros((width, vocab), jnp.float32) if options.gradients else None,
        )
        results = _in_chunks(chunk, limit, (hidden, ids, weights), zeros)

    total = jnp.sum(results.losses)
    if axes.batch:
        total = jax.lax.psum(total, axes.batch)
    correct = results.correct.reshape(shape) if options.score else None
    d_hidden, d_table = _sum_gradients(results, shape, axes) if options.gradients else (None, None)
    return total, results.losses.reshape(shape), correct, d_hidden, d_table


def _sum_gradients(results, shape, axes):
    """d_hidden [B K D] and d_table [V D], over all devices that share them."""
    d_hidden, d_table = results.d_hidden, results.d_table
    if axes.vocab:
        d_hidden = jax.lax.psum(d_hidden, axes.vocab)
    d_hidden = d_hidden.reshape(*shape, d_hidden.shape[-1])
    d_table = jnp.swapaxes(d_table, 0, 1)
    for axis in axes.scattered:  # in the order in which the parameter is split
        d_table = jax.lax.psum_scatter(d_table, axis, scatter_dimension=1, tiled=True)
    if others := tuple(axis for axis in axes.batch if axis not in axes.scattered):
        d_table = jax.lax.psum(d_table, others)
    return d_hidden, d_table


def _in_chunks(chunk, limit, arrays, zeros):
    """The results of all targets, at most `limit` at a time; unused targets (weight 0) are sorted to the end."""
    weights = arrays[-1]
    count = weights.size
    sizes = _chunk_sizes(count, limit)
    room = max(-(-count // size) * size for size in sizes)
    order = jnp.argsort(weights == 0.0, stable=True)
    inverse = jnp.argsort(order)

    def padded(a):
        return jnp.pad(a, ((0, room - count), *((0, 0),) * (a.ndim - 1)))

    arrays = [padded(a[order]) for a in arrays]
    zeros, d_table = jax.tree.map(padded, zeros[:3]), zeros.d_table

    def run(size, used):
        """The first `used` targets, in chunks of `size`."""

        def add(number, carry):
            results, d_table = carry
            *values, d_part = chunk(*(jax.lax.dynamic_slice_in_dim(a, number * size, size) for a in arrays))
            results = jax.tree.map(
                lambda into, value: jax.lax.dynamic_update_slice_in_dim(into, value, number * size, 0),
                results,
                tuple(values),
            )
            return results, None if d_table is None else d_table + d_part

        return jax.lax.fori_loop(0, -(-used // size), add, (zeros, d_table))

    if len(sizes) == 1:
        results, d_table = run(*sizes, count)
    else:  # the size whose last chunk has the fewest unused targets
        used = jnp.sum(weights != 0.0)
        best = jnp.argmin(jnp.stack([-(-used // size) * size for size in sizes]))
        results, d_table = jax.lax.switch(best, [functools.partial(run, size) for size in sizes], used)
    return _Results(*jax.tree.map(lambda a: a[inverse], results), d_table)


def _chunk_sizes(count, limit):
    """Sizes to choose from at run time; on TPU one size, because plans count loops whose length is static."""
    if on_tpu():
        return [-(-count // -(-count // limit))]
    return [size for n in _EIGHTHS if (size := limit * n // 8)]


def _chunk(table, hidden, ids, weights, *, first_word, vocab_axes, options):
    """The results of the targets `ids` of `hidden` [M D]."""

    def over_words(values, reduce, collective):
        result = reduce(values, axis=-1)
        return collective(result, vocab_axes) if vocab_axes else result

    # The softmax, without its division.
    logits = matmul(hidden, table, (1,), (1,), "float32")
    max_logit = over_words(jax.lax.stop_gradient(logits), jnp.max, jax.lax.pmax)
    exp_logits = jnp.exp(logits - max_logit[:, None])
    denominator = over_words(exp_logits, jnp.sum, jax.lax.psum)

    # The target's logit, which smoothing mixes with the mean over the vocabulary.
    is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == (ids - first_word)[:, None]

    def from_logits():
        return over_words(jnp.where(is_target, logits, 0.0), jnp.sum, jax.lax.psum)

    def from_rows():  # on CPU a pass over all logits costs more than computing these few again
        rows = table[ids]
        return jnp.einsum("md,md->m", hidden, rows, precision=precision(hidden), preferred_element_type=jnp.float32)

    target_logit = from_logits() if vocab_axes else jax.lax.platform_dependent(cpu=from_rows, default=from_logits)
    words, smoothing = logits.shape[1] * (jax.lax.axis_size(vocab_axes) if vocab_axes else 1), options.label_smoothing
    if smoothing:
        mean = over_words(logits, jnp.sum, jax.lax.psum) / words
        target_logit = (1.0 - smoothing) * target_logit + smoothing * mean
    losses = weights * (max_logit + jnp.log(denominator) - target_logit)

    correct = None
    if options.score:  # the first of equal logits counts, as in argmax
        word = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) + first_word
        correct = over_words(jnp.where(logits == max_logit[:, None], word, words), jnp.min, jax.lax.pmin) == ids
    if not options.gradients:
        return _Results(losses, correct, None, None)

    targets = jnp.where(is_target, (1.0 - smoothing) * weights[:, None], 0.0)
    d_logits = exp_logits * (weights / denominator)[:, None] - targets
    if smoothing:
        d_logits = d_logits - (smoothing / words) * weights[:, None]
    d_logits = d_logits.astype(hidden.dtype)
    d_hidden = matmul(d_logits, table, (1,), (0,), hidden.dtype)
    return _Results(losses, correct, d_hidden, matmul_tn(hidden, d_logits, "float32"))
