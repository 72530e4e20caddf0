"""A released checkpoint, opened but not yet read, whatever format it is in."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from glm_jax.interop.errors import FormatError
from glm_jax.interop.tensors import LazyTensor
from glm_jax.model.config import GLMConfig
from glm_jax.tokenizers.base import Tokenizer

_PUBLISHED = ("base", "large", "410m", "515m", "2b", "10b")  # every published shape of layers
_PREFIXES = ("module.", "model.", "glm.")  # DeepSpeed and FP16_Module; the original's wrappers; the hub's wrappers


@dataclasses.dataclass
class Source:
    """What a folder holds.

    Attributes:
      kind: "megatron" or "hub".
      tensors: by the original's names, without the prefixes of wrappers.
      declared: fields of GLMConfig that the folder states, apart from its tensors.
      metadata: other entries of the checkpoint that are plain numbers, such as its iteration.
      notes: what a reader should know, for the load report.
    """

    kind: str
    path: pathlib.Path
    tensors: dict[str, LazyTensor]
    declared: dict[str, Any]
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    tokenizer: Tokenizer | None = None


def plain_names(tensors: Mapping[str, Any], where: str) -> dict[str, LazyTensor]:
    """The state dict without the prefixes that wrappers add.

    Raises FormatError for entries that are no tensors and for names that then coincide.
    """
    result = {}
    for key, value in tensors.items():
        if not isinstance(value, LazyTensor):
            raise FormatError(f"{where}: {str(key)[:100]!r} among the weights is a {type(value).__name__}, no tensor")
        name = str(key)
        while prefix := next((p for p in _PREFIXES if name.startswith(p)), None):
            name = name[len(prefix) :]
        if name in result:
            raise FormatError(f"{where}: {name} is there twice, under different prefixes")
        result[name] = value
    return result


def drop_tied_head(tensors: dict[str, LazyTensor], notes: list[str]) -> None:
    """Removes an output head that is a copy of the word embeddings. Raises FormatError when it is something else."""
    head = tensors.pop("lm_head.weight", None)
    if head is None:
        return
    table = tensors.get("word_embeddings.weight")
    if table is None or table.shape != head.shape or table.read().tobytes() != head.read().tobytes():
        raise FormatError(
            f"lm_head.weight in {head.file} differs from the word embeddings, which are GLM's output head"
        )
    notes.append("lm_head.weight is a copy of the word embeddings, GLM's output head; it was dropped")


def config_of(source: Source, **given: Any) -> GLMConfig:
    """The model that the tensors are of.

    Everything but the number of heads shows in the shapes; that is stated by a config, given by the caller, or known
    from the published sizes.

    Args:
      given: fields of GLMConfig that the caller states; None is nothing stated.

    Raises:
      FormatError: a config that contradicts the tensors, tensors of another model, an unknown number of heads.
    """
    fields = _from_shapes(source)
    for key, value in source.declared.items():
        if key in fields and fields[key] != value:
            raise FormatError(
                f"the config of {source.path} says {key} {value}, but its tensors have {fields[key]}: "
                "the config or the tensors are of another model"
            )
    stated, heads = source.declared.get("num_heads"), given.get("num_heads")
    if stated is not None and heads not in (None, stated):
        raise FormatError(f"the config of {source.path} says num_heads {stated}, not {heads}")
    fields |= source.declared | {key: value for key, value in given.items() if value is not None}
    if "num_heads" not in fields:
        published = [GLMConfig.named(name) for name in _PUBLISHED]
        sizes = {(config.num_layers, config.hidden_size): config.num_heads for config in published}
        shape = fields["num_layers"], fields["hidden_size"]
        if shape not in sizes:
            raise FormatError(
                f"the number of attention heads of {source.path} shows nowhere: {shape[0]} layers of width {shape[1]} "
                "are no published size; pass num_heads (convert: --num-heads)"
            )
        fields["num_heads"] = sizes[shape]
        source.notes.append(f"{sizes[shape]} attention heads, as in the published model of this shape")
    try:
        config = GLMConfig(**fields)
    except ValueError as error:
        raise FormatError(f"{source.path}: {error}") from error
    if config.block_positions:
        source.notes.append(
            f"position tables have rows 0 to {config.max_position_embeddings}: one more than max_position_embeddings, "
            "for the original's sentinel position"
        )
    return config


def _from_shapes(source):
    tensors = source.tensors
    names = [key for key in tensors if "relative" in key or key.endswith(("r_w_bias", "r_r_bias", "inv_freq"))]
    if names:
        raise FormatError(f"{source.path} was trained with --transformer-xl ({names[0]}), which glm_jax does not have")
    for key in ("word_embeddings.weight", "transformer.position_embeddings.weight"):
        if key not in tensors:
            near = ", ".join(list(tensors)[:3]) or "nothing"
            raise FormatError(f"{source.path} is no checkpoint of GLM: {key} is missing; it holds {near}, …")
        if len(tensors[key].shape) != 2:
            raise FormatError(f"{key} in {tensors[key].file} is {tensors[key].shape}, expected two dimensions")
    block = "transformer.block_position_embeddings.weight" in tensors
    layers = {key.split(".")[2] for key in tensors if key.startswith("transformer.layers.")}
    numbers = [int(number) for number in layers if number.isascii() and number.isdigit() and len(number) < 6]
    if not numbers or len(numbers) != len(layers):
        raise FormatError(f"{source.path} has no layers, or layers with odd numbers: {sorted(layers)[:3]}")
    vocab_size, hidden_size = tensors["word_embeddings.weight"].shape
    return {
        "vocab_size": vocab_size,
        "num_layers": min(max(numbers) + 1, len(tensors)),
        "hidden_size": hidden_size,
        "max_position_embeddings": tensors["transformer.position_embeddings.weight"].shape[0] - block,
        "block_positions": block,
    }
