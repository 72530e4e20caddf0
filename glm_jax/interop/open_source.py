"""Opening a checkpoint of the original or of the hub: its tensors become a model's parameters."""

import logging
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from glm_jax.distributed import sharding
from glm_jax.interop import extras, param_mapping
from glm_jax.interop.errors import FormatError
from glm_jax.interop.load_report import LoadReport
from glm_jax.interop.placement import place_params, replicate
from glm_jax.interop.pretrained import Pretrained
from glm_jax.interop.source import Source, config_of
from glm_jax.interop.tensors import FLOATS, LazyTensor
from glm_jax.interop.tokenizer_check import check_tokenizer, warn_of_shared_generation_mask
from glm_jax.model.transformer import GLM

logger = logging.getLogger(__name__)

_GELU = {
    "tanh": "GELU with tanh, as in the original's code",
    "exact": "exact GELU, as in the hub's code; the original trained with tanh, and gelu='tanh' gives its logits",
}


def open_source(
    source: Source,
    *,
    given: Mapping[str, Any],
    dtype: str,
    param_dtype: str,
    mesh: Mesh | None,
    rules: sharding.Rules,
) -> Pretrained:
    """The model of a source; `given` are fields of GLMConfig that the caller states, other arguments as for
    `from_pretrained`.

    Raises FormatError for tensors that are not those of one GLM, and a tokenizer of another size.
    """
    weights = {key: tensor for key, tensor in source.tensors.items() if not extras.is_extra(key)}
    others = {key: tensor for key, tensor in source.tensors.items() if extras.is_extra(key)}
    source.tensors = weights
    config = config_of(source, dtype=dtype, **given)
    source.notes.append(_GELU[config.gelu])
    param_mapping.check(config, weights)
    _check_floating(weights, source)
    check_tokenizer(source.tokenizer, config, source.notes)
    warn_of_shared_generation_mask(source, config)
    parts = extras.read(others, config.hidden_size)
    params = place_params(config, weights, param_dtype, mesh, rules)
    params |= replicate(parts, params)
    tensors = weights | others
    dtypes = sorted({str(tensor.dtype) for tensor in tensors.values()})
    _note_precision(tensors, dtypes, param_dtype, source.notes)
    report = LoadReport(f"{source.kind} checkpoint {source.path}", tensors, source.notes)
    logger.info("%s", report.summary())
    iteration = source.metadata.get("iteration")
    return Pretrained(
        GLM(config),
        params,
        source.tokenizer,
        path=str(source.path),
        step=iteration if isinstance(iteration, int) else None,
        dtype=dtypes[0] if len(dtypes) == 1 else None,
        metadata=source.metadata,
        report=report,
    )


def _check_floating(tensors: Mapping[str, LazyTensor], source: Source) -> None:
    others = [f"{key} is {tensor.dtype}" for key, tensor in tensors.items() if str(tensor.dtype) not in FLOATS]
    if others:
        raise FormatError(f"{source.path}: weights must be floating numbers: {', '.join(others[:5])}")


def _note_precision(tensors, dtypes, param_dtype, notes):
    if any(not tensor.checksum for tensor in tensors.values()):
        notes.append("a file without checksums: its format cannot show whether bits were flipped")
    if dtypes != [param_dtype]:
        exact = param_dtype == "float32" and "float64" not in dtypes
        notes.append(f"{', '.join(dtypes)} was {'widened' if exact else 'rounded'} to {param_dtype}")
