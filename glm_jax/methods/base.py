"""What every tuning method has: the parameters that it adds, those that train, and both parts put together again."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import GLM

Path = tuple[str, ...]
HEAD = "classifier"  # a classification head among the parameters trains with every method


@dataclasses.dataclass(frozen=True)
class Method:
    """A way of adapting a model: `add` its parameters, `split` off those that train, and `join` them in every step.

        method = LoRA(rank=8)
        model = method.model(model)
        trained, frozen = method.split(method.add(params, model.config, jax.random.key(0)))
        loss = glm_jax.loss(model, method.join(trained, frozen), batch)

    Attributes:
      name: in configs and adapters.
      dropout: of what the method adds.
    """

    name: ClassVar[str] = ""
    dropout: ClassVar[float] = 0.0

    def check(self, config: GLMConfig) -> None:
        """Raises ValueError for a model to which the method cannot be applied."""

    def model(self, model: GLM) -> GLM:
        """`model` with the method's dropout."""
        return model.clone(config=dataclasses.replace(model.config, adapter_dropout=self.dropout))

    def add(self, params: Mapping[str, Any], config: GLMConfig, key: Any) -> dict[str, Any]:
        """`params` and fresh parameters of the method, boxed with logical axes where `params` are."""
        self.check(config)
        return dict(params)

    def trains(self, path: Path) -> bool:
        """Whether the parameter at `path` of the tree that `add` returns is trained; a head is, with every method."""
        raise NotImplementedError

    def split(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(trained, frozen): two trees whose `join` is `params`."""
        return partition(params, lambda path: path[0] == HEAD or self.trains(path))

    def join(self, trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters that `GLM` takes."""
        return merge_trees(trained, frozen)

    def constants(self, trained: Mapping[str, Any]) -> dict[str, Any]:
        """What `add` puts beside the parameters in `trained` and is neither trained nor the model's; NumPy arrays."""
        del trained
        return {}

    def hyperparameters(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return dataclasses.asdict(self)


def partition(tree: Mapping[str, Any], chosen: Callable[[Path], bool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The leaves whose path is chosen, and the others, as two trees without empty branches."""
    leaves = flatten_dict(tree)
    inside = {path: leaf for path, leaf in leaves.items() if chosen(path)}
    return unflatten_dict(inside), unflatten_dict({path: leaves[path] for path in leaves if path not in inside})


def merge_trees(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """One tree with the leaves of both; those of `first` where both have one."""
    return unflatten_dict(flatten_dict(second) | flatten_dict(first))


def is_box(leaf: Any) -> bool:
    """Whether a leaf carries logical axes."""
    return isinstance(leaf, nn.meta.AxisMetadata)


def boxer(params: Mapping[str, Any]) -> Callable[..., Any]:
    """box(value, axes), which attaches logical axes where the leaves of `params` have them."""
    leaves = jax.tree.leaves(dict(params), is_leaf=is_box)
    if any(map(is_box, leaves)):
        return lambda value, axes: nn.LogicallyPartitioned(value, axes)
    return lambda value, axes: value


def value_of(leaf: Any) -> Any:
    """The array of a leaf, boxed or not."""
    return leaf.value if is_box(leaf) else leaf


def axes_of(leaf: Any, rank: int) -> tuple[str | None, ...]:
    """The logical axes of a leaf; Nones where it has none."""
    return tuple(leaf.names) if is_box(leaf) else (None,) * rank
