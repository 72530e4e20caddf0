"""Tuning methods: what a model gets, what of it trains, and how both are put together; see docs/tuning.md."""

from collections.abc import Mapping
from typing import Any

from glm_jax.files import nearest
from glm_jax.methods.base import Method
from glm_jax.methods.in_place import IA3, Bias, ClassifierHead, FirstLayers, Full, with_joined_layers
from glm_jax.methods.lora import LoRA
from glm_jax.methods.merging import has_adapter, merge, unmerge, without_adapter
from glm_jax.methods.prefix import Prompt, PTuningV2
from glm_jax.methods.soft_prompt import PromptSpell

METHODS = {
    kind.name: kind for kind in (Full, PTuningV2, LoRA, Prompt, PromptSpell, Bias, IA3, FirstLayers, ClassifierHead)
}

__all__ = [
    "IA3", "METHODS", "Bias", "ClassifierHead", "FirstLayers", "Full", "LoRA", "Method", "PTuningV2", "Prompt",
    "PromptSpell", "has_adapter", "make_method", "merge", "method_of", "unmerge", "with_joined_layers",
    "without_adapter",
]  # fmt: skip


def make_method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The method `name` with the fields `settings`.

    Raises ValueError for an unknown name, field or value.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; nearest: {nearest(name, METHODS)}")
    kind, settings = METHODS[name], dict(settings or {})
    known = list(kind.__dataclass_fields__)
    for field in settings:
        if field not in known:
            raise ValueError(f"method {name} has no setting {field!r}; it has: {', '.join(known) or 'none'}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})


def method_of(config: Mapping[str, Any]) -> Method:
    """The method of a run with this config, whose section of the same name has the settings; "full" where none is set.

    Raises as `make_method`.
    """
    name = config.get("method", "full")
    settings = dict(config.get(name) or {})
    return make_method(name, settings)
