"""Methods that train some of the model's own parameters, or scales of its activations."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from glm_jax.methods.base import Method, Path, axes_of, boxer, is_box, merge_trees, value_of
from glm_jax.methods.lora import kernels
from glm_jax.model.config import GLMConfig


@dataclasses.dataclass(frozen=True)
class Full(Method):
    """Everything trains."""

    name: ClassVar[str] = "full"

    def trains(self, path: Path) -> bool:
        """Always."""
        del path
        return True


@dataclasses.dataclass(frozen=True)
class Bias(Method):
    """BitFit (Ben Zaken et al. 2022, arXiv 2106.10199): the biases, those of layer norms among them."""

    name: ClassVar[str] = "bias"

    def trains(self, path: Path) -> bool:
        """Parameters named bias."""
        return path[-1] == "bias"


@dataclasses.dataclass(frozen=True)
class ClassifierHead(Method):
    """The classification head alone: what a frozen model already knows."""

    name: ClassVar[str] = "classifier"

    def trains(self, path: Path) -> bool:
        """Nothing but the head."""
        del path
        return False


@dataclasses.dataclass(frozen=True)
class IA3(Method):
    """(IA)³ (Liu et al. 2022, arXiv 2205.05638): scales of keys, values and the inner feed-forward activations."""

    name: ClassVar[str] = "ia3"

    def add(self, params: Mapping[str, Any], config: GLMConfig, key: Any) -> dict[str, Any]:
        """`params` with scales of 1. Raises ValueError for layers of another kind than GLM's."""
        adapted, box = super().add(params, config, key), boxer(params)
        modules = {path[-1]: (path, module) for path, module in kernels(params["layers"])}
        for name, leaf in (("query_key_value", "output_scale"), ("dense_4h_to_h", "input_scale")):
            if name not in modules:
                raise ValueError(f"ia3 scales what {name} computes, but the layers have {', '.join(modules)}")
            path, module = modules[name]
            shape, axes = value_of(module["kernel"]).shape, axes_of(module["kernel"], value_of(module["kernel"]).ndim)
            if leaf == "output_scale":  # key and value
                shape, axes = (shape[0], 2, *shape[3:]), (axes[0], None, *axes[3:])
            else:
                shape, axes = shape[:2], axes[:2]
            scale = box(jnp.ones(shape, jnp.float32), axes)
            adapted = merge_trees(unflatten_dict({("layers", *path, leaf): scale}), adapted)
        return adapted

    def trains(self, path: Path) -> bool:
        """The scales."""
        return path[-1] in ("input_scale", "output_scale")


@dataclasses.dataclass(frozen=True)
class FirstLayers(Method):
    """The first layers are frozen, the embeddings (and so the tied head) with them; the others train.

    Attributes:
      frozen: how many layers; no gradient is computed for them.
    """

    name: ClassVar[str] = "first_layers"
    frozen: int = 1

    def __post_init__(self):
        if self.frozen < 1:
            raise ValueError(f"first_layers.frozen {self.frozen} must be at least 1; the method 'full' freezes none")

    def check(self, config: GLMConfig) -> None:
        """Raises ValueError where no layer would be left to train."""
        if self.frozen >= config.num_layers:
            raise ValueError(
                f"first_layers.frozen {self.frozen} leaves none of the {config.num_layers} layers to train: lower it, "
                "or take the method 'classifier'"
            )

    def trains(self, path: Path) -> bool:
        """Layers and the final layer norm; `split` cuts the frozen ones off."""
        return path[0] in ("layers", "final_layernorm")

    def split(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(trained, frozen): the frozen layers go under "first_layers"."""

        def cut(part):
            def of(leaf):
                value = value_of(leaf)
                if isinstance(value, jax.ShapeDtypeStruct):
                    sizes = range(value.shape[0])[part]
                    value = jax.ShapeDtypeStruct((len(sizes), *value.shape[1:]), value.dtype)
                else:
                    value = value[part]
                return leaf.replace_boxed(value) if is_box(leaf) else value

            return jax.tree.map(of, params["layers"], is_leaf=is_box)

        trained, frozen = super().split(params)
        if "first_layers" in params:
            return trained, frozen
        return (
            trained | {"layers": cut(slice(self.frozen, None))},
            frozen | {"first_layers": cut(slice(None, self.frozen))},
        )


def with_joined_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """`params` with "first_layers" and "layers" as one stack, as checkpoints have them."""
    if "first_layers" not in params:
        return dict(params)
    layers = jax.tree.map(
        lambda first, rest: jnp.concatenate([first.astype(rest.dtype), rest]), params["first_layers"], params["layers"]
    )
    return {name: tree for name, tree in params.items() if name != "first_layers"} | {"layers": layers}
