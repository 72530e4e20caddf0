"""LoRA: low-rank factors beside the kernels of the layers (Hu et al. 2021, arXiv 2106.09685)."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from glm_jax.files import nearest
from glm_jax.methods.base import Method, Path, axes_of, boxer, merge_trees, value_of
from glm_jax.model.config import GLMConfig

LORA_LEAVES = ("lora_a", "lora_b", "lora_scale")


@dataclasses.dataclass(frozen=True)
class LoRA(Method):
    """x · kernel + scale · (x · A) · B; A uniform within ±1/√inputs (PyTorch's Kaiming with a = √5), B zero, as peft.

    Attributes:
      rank: r, of the factors.
      alpha: the scale is alpha / r.
      rank_stabilized: the scale is alpha / √r (Kalajdzievski 2023, arXiv 2312.03732).
      dropout: of what A reads.
      targets: names of the modules that are adapted, in each layer: query_key_value, dense, dense_h_to_4h,
        dense_4h_to_h; None: every one with a kernel.
      layers: numbers of the layers that are adapted; None: all.
      separate_query_key_value: a pair of factors for each of query, key and value instead of one for all three.
    """

    name: ClassVar[str] = "lora"
    rank: int = 8
    alpha: float = 8.0
    rank_stabilized: bool = False
    dropout: float = 0.0  # type: ignore[misc]
    targets: tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    separate_query_key_value: bool = False

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"lora.rank {self.rank} must be at least 1")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"lora.alpha {self.alpha} must be positive")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"lora.dropout {self.dropout} must lie in [0, 1)")
        for field in ("targets", "layers"):
            if getattr(self, field) == ():
                raise ValueError(f"lora.{field} is empty: name some, or leave it None for all")

    @property
    def scale(self) -> float:
        """By which the product of the factors is multiplied."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)

    def check(self, config: GLMConfig) -> None:
        """Raises ValueError for layers that the model does not have."""
        for layer in self.layers or ():
            if not 0 <= layer < config.num_layers:
                raise ValueError(f"lora.layers: there is no layer {layer}; they are 0 to {config.num_layers - 1}")

    def add(self, params: Mapping[str, Any], config: GLMConfig, key: Any) -> dict[str, Any]:
        """`params` with factors beside the kernels of `targets`.

        Raises ValueError for targets that match nothing, a rank above that of a kernel, and factors that are there.
        """
        self.check(config)
        modules = dict(kernels(params["layers"]))
        names = sorted({path[-1] for path in modules})
        for target in self.targets or ():
            if target not in names:
                raise ValueError(f"lora.targets: no module is named {target!r}; nearest: {nearest(target, names)}")
        box, adapted = boxer(params), dict(params)
        for number, (path, module) in enumerate(modules.items()):
            if self.targets is not None and path[-1] not in self.targets:
                continue
            if "lora_a" in module:
                raise ValueError(f"layers/{'/'.join(path)} has LoRA's factors already: merge them first")
            factors = self._factors(module, path, box, jax.random.fold_in(key, number))
            adapted = merge_trees(unflatten_dict({("layers", *path): factors}), adapted)
        return adapted

    def _factors(self, module, path, box, key):
        kernel, bias = value_of(module["kernel"]), value_of(module["bias"])
        outputs = kernel.shape[kernel.ndim - (bias.ndim - 1) :]
        inputs = kernel.shape[1 : kernel.ndim - len(outputs)]
        axes = axes_of(module["kernel"], kernel.ndim)
        in_axes, out_axes = axes[1 : 1 + len(inputs)], axes[1 + len(inputs) :]
        count, size = kernel.shape[0], math.prod(inputs)
        parts = self.separate_query_key_value and len(outputs) == 3
        largest = min(size, math.prod(outputs[1:] if parts else outputs))
        if self.rank > largest:
            raise ValueError(
                f"lora.rank {self.rank} is larger than layers/{'/'.join(path)}, whose kernel has rank {largest} at "
                "most: lower it"
            )
        group, group_axes = ((outputs[0],), (out_axes[0],)) if parts else ((), ())
        out, out_axes = (outputs[1:], out_axes[1:]) if parts else (outputs, out_axes)
        a = jax.random.uniform(key, (count, *inputs, *group, self.rank), jnp.float32, -1.0, 1.0) / size**0.5
        chosen = jnp.array([self.layers is None or i in self.layers for i in range(count)])
        a = jnp.where(chosen.reshape(-1, *(1,) * (a.ndim - 1)), a, 0.0)  # with both factors zero, no gradient is
        b = jnp.zeros((count, *group, self.rank, *out), jnp.float32)
        return {
            "lora_a": box(a, ("layers", *in_axes, *group_axes, None)),
            "lora_b": box(b, ("layers", *group_axes, None, *out_axes)),
            "lora_scale": box(jnp.full((count,), self.scale, jnp.float32), ("layers",)),
        }

    def constants(self, trained: Mapping[str, Any]) -> dict[str, Any]:
        """The scales beside the factors."""
        factors = {path: leaf for path, leaf in flatten_dict(trained).items() if path[-1] == "lora_a"}
        scales = {path: np.full(leaf.shape[0], self.scale, np.float32) for path, leaf in factors.items()}
        return unflatten_dict({(*path[:-1], "lora_scale"): scale for path, scale in scales.items()})

    def trains(self, path: Path) -> bool:
        """The factors."""
        return path[-1] in ("lora_a", "lora_b")


def kernels(tree: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """(path, module) of every module of the layers with a kernel and a bias."""
    if "kernel" in tree and "bias" in tree:
        yield path, tree
        return
    for name, branch in tree.items():
        if isinstance(branch, Mapping):
            yield from kernels(branch, (*path, name))


@jax.jit
def product(factors: Mapping[str, Any]) -> Any:
    """scale · A · B of every layer [layers *inputs *outputs], float32."""
    a, b, scale = (factors[name].astype(jnp.float32) for name in LORA_LEAVES)

    def one(a, b, scale):
        highest = jax.lax.Precision.HIGHEST
        if a.ndim == 3 and b.ndim == 4:  # a pair for each of query, key and value
            return scale * jnp.einsum("ipr,prnh->ipnh", a, b, precision=highest)
        flat = jnp.dot(a.reshape(-1, a.shape[-1]), b.reshape(len(b), -1), precision=highest)
        return scale * flat.reshape(*a.shape[:-1], *b.shape[1:])

    return jax.vmap(one)(a, b, scale)
