"""Where arrays live on a mesh (mesh.py): rules as data.

Modules name their dimensions logically ("embed", "heads", …); `RULES` says over which mesh axes each is split.
"""

import difflib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from glm_jax.distributed.mesh import MESH_AXES, make_mesh, shape_text

Rules = Mapping[str, str | tuple[str, ...] | None]

# Logical axis → mesh axes; None is "not split". Change one with `RULES | {"vocab": None}`.
RULES: Rules = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "sequence": None,
    "targets": None,
    "positions": None,
    "layers": None,
    "qkv": None,
    "head_dim": None,
    "bias_mlp": ("tensor", "fsdp"),
    "bias_head_dim": "fsdp",  # at 10B this bias is 2 MB
}


def partition_spec(axes: Sequence[str | None], rules: Rules = RULES, name: str = "array") -> PartitionSpec:
    """Returns the PartitionSpec of an array with these logical axes (None: a dimension that is never split).

    Raises:
      ValueError: a logical axis without a rule, a rule with an unknown mesh axis, or one mesh axis for two dimensions.
    """
    spec, used = [], {}
    for axis in axes:
        if axis is None:
            spec.append(None)
            continue
        if axis not in rules:
            close = difflib.get_close_matches(axis, rules, n=3) or rules
            raise ValueError(
                f"{name}: logical axis {axis!r} has no rule (nearest: {', '.join(close)}); "
                f"add {{{axis!r}: mesh axes}} to the rules, None to keep it whole"
            )
        rule = rules[axis]
        mesh_axes = _names(rule)
        for mesh_axis in mesh_axes:
            if mesh_axis not in MESH_AXES:
                raise ValueError(f"rule {axis!r} → {rule!r}: no mesh axis {mesh_axis!r}; there are {MESH_AXES}")
            if mesh_axis in used:
                raise ValueError(
                    f"{name}: dimensions {used[mesh_axis]!r} and {axis!r} are both split over {mesh_axis!r}; "
                    "name one of them None, or give it an axis whose rule is None"
                )
            used[mesh_axis] = axis
        spec.append(None if not mesh_axes else mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes)
    return PartitionSpec(*spec)


def logical_axis_rules(rules: Rules = RULES):
    """Context in which Linen's `with_logical_constraint` in the modules follows `rules`; enter it around tracing.

    Raises ValueError where the mesh that is set lacks an axis that the rules may name.
    """
    if (mesh := jax.sharding.get_abstract_mesh()).shape:
        _check_axes(mesh)
    return nn.logical_axis_rules(tuple(rules.items()))


def shards(axis: str) -> int:
    """Into how many parts the logical `axis` is split where this is called: 1 outside of a mesh or without rules."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(name, 1) for name in rule_axes(axis, dict(nn.get_logical_axis_rules())))


def rule_axes(axis: str, rules: Rules) -> tuple[str, ...]:
    """The mesh axes over which the logical `axis` is split; none without a rule."""
    return _names(rules.get(axis))


def on_each_device(function: Callable, in_axes: Any, out_axes: list[str | None]) -> Callable:
    """`function` of each device's part of its arguments, for kernels that XLA cannot split; outside of a mesh as it is.

    `in_axes`, in the tree of the arguments, and `out_axes` have a list of logical axes for each array, split as the
    rules that hold where this is called say; without rules every device has all.
    """
    mesh, rules = jax.sharding.get_abstract_mesh(), dict(nn.get_logical_axis_rules())
    if mesh.empty:
        return function

    def specs(axes):
        return jax.tree.map(
            lambda names: partition_spec(names, rules) if rules else PartitionSpec(),
            axes,
            is_leaf=lambda node: isinstance(node, list),
        )

    return jax.shard_map(function, mesh=mesh, in_specs=specs(in_axes), out_specs=specs(out_axes), check_vma=False)


def traced_device() -> Any:
    """A device such as what is traced here is for: of the mesh, which may only be planned, or else the default one."""
    return getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None) or jax.devices()[0]


def on_tpu() -> bool:
    """Whether what is traced here is for TPUs."""
    return traced_device().device_kind.startswith("TPU")


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of scalars such as metrics: a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, rules: Rules = RULES) -> NamedSharding:
    """Returns the sharding of every array of a batch: the first dimension over the mesh axes of "batch"."""
    _check_axes(mesh)
    return NamedSharding(mesh, partition_spec(("batch",), rules, "batch"))


def _check_axes(mesh: Any) -> None:
    """Raises ValueError for a mesh without an axis that rules may name."""
    if missing := [axis for axis in MESH_AXES if axis not in mesh.shape]:
        raise ValueError(
            f"the mesh has the axes {', '.join(map(str, mesh.shape))}, but not {', '.join(missing)}: make it with "
            f"glm_jax.distributed.mesh.make_mesh, or give it all of {', '.join(MESH_AXES)}, of size 1 where not used"
        )


def state_shardings(abstract_state: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """Returns a NamedSharding for every array of `unbox(abstract_state)`, in the same tree.

    Boxed arrays (`nn.with_logical_partitioning`) follow their logical axes. Unboxed arrays whose path ends with the
    name of a boxed one and that have its shape, such as Adam's moments, are split like it. Scalars are replicated; so
    are arrays of a boxed one's name with another rank, which are Adafactor's sums over one of its dimensions.

    The way to a sharded state:
      abstract = jax.eval_shape(init, key)
      shardings = state_shardings(abstract, mesh)
      state = jax.jit(lambda key: unbox(init(key)), out_shardings=shardings)(key)

    Args:
      abstract_state: from `jax.eval_shape`, with boxed parameters; the optimizer state may come from boxed or unboxed
        ones.
      mesh: from `make_mesh`.
      rules: logical axis → mesh axes.

    Raises:
      ValueError: an axis without a rule, a dimension that its mesh axes do not divide, or an array without logical axes
        that resembles no parameter. Nothing is replicated silently.
    """
    _check_axes(mesh)
    leaves = jax.tree_util.tree_leaves_with_path(abstract_state, is_leaf=_is_box)
    boxes = {_keys(path): leaf for path, leaf in leaves if _is_box(leaf)}
    root = 0  # length of what precedes all names, usually ("params",)
    while all(len(keys) > root + 1 for keys in boxes) and len({keys[root] for keys in boxes}) == 1:
        root += 1
    parameters = {keys[root:]: box for keys, box in boxes.items()}

    def boxed(keys, value, box):
        if math.prod(value.shape) == 1 or len(box.names) != len(value.shape):
            return replicated(mesh)
        name = "/".join(keys)
        spec = partition_spec(box.names, rules, name)
        _check_divisible(name, value.shape, box.names, spec, mesh)
        return NamedSharding(mesh, spec)

    def sharding(path, leaf):
        keys = _keys(path)
        if _is_box(leaf):
            # A frozen parameter's place in the optimizer state is empty: optax.MaskedNode.
            return boxed(keys, leaf.value, leaf) if hasattr(leaf.value, "shape") else leaf.value
        if math.prod(leaf.shape) == 1:
            return replicated(mesh)
        box = _twin(keys, leaf.shape, parameters)
        if box is None:
            raise ValueError(
                f"{'/'.join(keys)} {leaf.shape} has no logical axes and resembles no parameter; "
                "create it with nn.with_logical_partitioning"
            )
        return boxed(keys, leaf, box)

    for keys, box in parameters.items():  # so that an error names the parameter, not its moments
        if hasattr(box.value, "shape"):
            boxed(keys, box.value, box)
    return jax.tree_util.tree_map_with_path(sharding, abstract_state, is_leaf=_is_box)


def unbox(tree: Any) -> Any:
    """Returns `tree` with plain arrays for Linen's boxes.

    Unlike `flax.linen.unbox` it adds no sharding constraints under `jax.set_mesh`: these fail on optimizer state whose
    rank is not that of the parameter, and the shardings are given by `state_shardings` anyway.
    """
    return jax.tree.map(lambda leaf: leaf.value if _is_box(leaf) else leaf, tree, is_leaf=_is_box)


def with_shardings(abstract_state: Any, shardings: Any) -> Any:
    """Returns `abstract_state` unboxed, as `jax.ShapeDtypeStruct`s that carry their sharding: what a restore needs."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        unbox(abstract_state),
        shardings,
    )


def describe(shardings: Any, abstract_state: Any = None) -> str:
    """Returns a table of array names and partition specs; with `abstract_state` also shapes and bytes on a device."""
    named = jax.tree_util.tree_leaves_with_path(shardings)
    arrays = [None] * len(named) if abstract_state is None else jax.tree.leaves(unbox(abstract_state))
    rows, total = [], 0
    for (path, sharding), array in zip(named, arrays, strict=True):
        row = ["/".join(_keys(path)), ", ".join(map(str, sharding.spec)) or "replicated"]
        if array is not None:
            size = math.prod(sharding.shard_shape(array.shape)) * array.dtype.itemsize
            total += size
            row[1:1] = [str(tuple(array.shape))]
            row.append(f"{size:,} B")
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if abstract_state is not None:
        lines.append(f"{total:,} bytes on each device")
    return "\n".join(lines)


def local_replica(params: Any) -> tuple[Any, Mesh | None]:
    """Parameters that this process can use without the others, and the mesh of its devices over which they are split.

    On one process: the parameters as they are, and None. All processes call it together.
    """
    if jax.process_count() == 1:
        return params, None
    from jax.experimental import multihost_utils

    leaves = jax.tree.leaves(params)
    dimensions = [pair for leaf in leaves for pair in zip(leaf.shape, leaf.sharding.spec, strict=False)]
    split = [length for length, axes in dimensions if "tensor" in _names(axes)]
    size = math.gcd(len(jax.local_devices()), *split)
    mesh = make_mesh({"tensor": size}, jax.local_devices()[:size])

    def copy(leaf):
        whole = multihost_utils.process_allgather(leaf, tiled=True)
        return jax.device_put(whole, NamedSharding(mesh, leaf.sharding.spec))

    return jax.tree.map(copy, params), mesh


def process_shard(mesh: Mesh, rules: Rules = RULES) -> tuple[int, int]:
    """Returns (index, count): this process reads part `index` of `count` equal parts of every batch.

    Processes that share all their rows (tensor parallelism across hosts) have the same index.

    Raises:
      ValueError: the mesh splits the batch between processes unequally.
    """
    return _process_shard(batch_sharding(mesh, rules), batch_shards(mesh, rules))


def local_batch_size(global_batch_size: int, mesh: Mesh, rules: Rules = RULES) -> int:
    """Returns how many examples of a batch of all hosts this process reads.

    Raises:
      ValueError: the batch is not a positive multiple of the number of batch shards.
    """
    _check_batch(global_batch_size, mesh, rules)
    return global_batch_size // process_shard(mesh, rules)[1]


def host_to_device(local_batch: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """Returns the global batch on the devices, from this process's rows (NumPy arrays with a common first dimension).

    Raises:
      ValueError: rows differ in number, or the global batch does not divide over the mesh.
    """
    counts = {array.shape[0] if array.ndim else 0 for array in jax.tree.leaves(local_batch)}
    if len(counts) != 1:
        raise ValueError(f"arrays of one batch have different numbers of rows: {sorted(counts)}")
    global_batch_size = counts.pop() * process_shard(mesh, rules)[1]
    _check_batch(global_batch_size, mesh, rules)
    sharding = batch_sharding(mesh, rules)

    def assemble(array):
        return jax.make_array_from_process_local_data(
            sharding, np.asarray(array), (global_batch_size, *array.shape[1:])
        )

    return jax.tree.map(assemble, local_batch)


@functools.lru_cache
def _process_shard(sharding: NamedSharding, shards: int) -> tuple[int, int]:
    rows: dict[int, set[int]] = {}
    for device, (index,) in sharding.devices_indices_map((shards,)).items():
        rows.setdefault(device.process_index, set()).update(range(*index.indices(shards)))
    parts = sorted({tuple(sorted(part)) for part in rows.values()})
    if sorted(row for part in parts for row in part) != list(range(shards)) or len({len(part) for part in parts}) != 1:
        raise ValueError(
            f"mesh {shape_text(sharding.mesh.shape)} splits the batch unequally between processes: {parts}"
        )
    return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def batch_shards(mesh: Mesh, rules: Rules = RULES) -> int:
    """Returns into how many parts the mesh splits a batch."""
    return math.prod(mesh.shape[axis] for axis in _names(partition_spec(("batch",), rules)[0]))


def _check_batch(global_batch_size: int, mesh: Mesh, rules: Rules) -> None:
    shards = batch_shards(mesh, rules)
    if global_batch_size < 1 or global_batch_size % shards:
        nearest = max(1, round(global_batch_size / shards)) * shards
        raise ValueError(
            f"batch of {global_batch_size} examples on mesh {shape_text(mesh.shape)}: must be a multiple of the "
            f"{shards} batch shards; take {nearest}, or a mesh with less data and fsdp"
        )


def _check_divisible(name: str, shape: tuple[int, ...], axes: Sequence, spec: PartitionSpec, mesh: Mesh) -> None:
    for i, (size, axis, mesh_axes) in enumerate(zip(shape, axes, spec, strict=True)):
        for_dimension = _names(mesh_axes)
        parts = math.prod(mesh.shape[mesh_axis] for mesh_axis in for_dimension)
        if size % parts:
            raise ValueError(
                f"{name} {shape}: dimension {i} ({axis!r}) of size {size} cannot be split over "
                f"{shape_text({mesh_axis: mesh.shape[mesh_axis] for mesh_axis in for_dimension})}; "
                f"choose a mesh whose axis divides it, or the rule {{{axis!r}: None}}"
            )


def _twin(keys: tuple[str, ...], shape: tuple[int, ...], boxes: Mapping[tuple[str, ...], Any]) -> Any:
    """The boxed array whose name ends `keys` (the longest such name) and whose shape fits, or None."""
    for start in range(len(keys)):
        box = boxes.get(keys[start:])
        if box is not None:
            return box if len(shape) != len(box.names) or shape == box.value.shape else None
    return None


def _names(axes: Any) -> tuple[str, ...]:
    """The mesh axes of a rule, or of one dimension of a PartitionSpec."""
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.Partitioned)


def _keys(path: tuple) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
