"""Opening a run folder of glm_jax."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from glm_jax.config import model_config
from glm_jax.distributed import sharding
from glm_jax.interop import extras, param_mapping, safetensors_file
from glm_jax.interop.adapter import combine, fingerprint
from glm_jax.interop.errors import FormatError
from glm_jax.interop.load_report import LoadReport
from glm_jax.interop.placement import replicate
from glm_jax.interop.pretrained import Pretrained
from glm_jax.interop.tensors import DTYPES
from glm_jax.interop.tokenizer_check import check_tokenizer
from glm_jax.methods import Full, method_of, without_adapter
from glm_jax.model.transformer import GLM
from glm_jax.tokenizers.base import Tokenizer
from glm_jax.training.checkpoint import CheckpointError
from glm_jax.training.workdir import RunFolder, RunFolderError, restore_run

EXTRAS_FILE = "extras.safetensors"  # soft prompt and classification head of an imported run


def recognizes(folder: pathlib.Path) -> bool:
    """Whether `folder` looks like a run folder."""
    return (folder / "checkpoints").is_dir() and (folder / "config.json").is_file()


def open_run(
    folder: pathlib.Path,
    tokenizer: Tokenizer | None,
    *,
    own_tokenizer: bool,
    step: int | str | None,
    dtype: str | None,
    param_dtype: str,
    mesh: Mesh | None,
    rules: sharding.Rules,
    open_base: Callable[[str], Pretrained],
) -> Pretrained:
    """The model of a run; arguments as for `from_pretrained`.

    `own_tokenizer`: the tokenizer is the run's. `open_base` opens the checkpoint from which a run with a tuning method
    started.

    Raises FormatError for a damaged folder or a tokenizer of another size, CheckpointError where there is no readable
    checkpoint, RunFolderError when the run's tokenizer is not the one that the checkpoint was trained with.
    """
    notes: list[str] = []
    try:
        settings = RunFolder(folder).read_config()
        section = {"size": None, **settings["model"]} | ({} if dtype is None else {"dtype": dtype})
        imported = dict(settings.get("imported") or {})
        if tokenizer is None and section.get("size") is None and section.get("vocab_size") is None:
            raise FormatError(f"{folder / 'tokenizer'} is missing: put the run's files back, or name a tokenizer")
        config = model_config(section, tokenizer.vocab_size if tokenizer else 0)
    except FormatError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FormatError(f"{folder / 'config.json'} does not describe a model: {error}") from error
    check_tokenizer(tokenizer, config, notes, exact=False)
    try:
        restored = restore_run(
            RunFolder(folder), settings, config, step, mesh, rules, tokenizer=tokenizer if own_tokenizer else None
        )
    except (CheckpointError, RunFolderError):
        raise
    except Exception as error:  # Orbax raises many types for damaged folders
        raise FormatError(f"the checkpoints in {folder} cannot be read: {type(error).__name__}: {error}") from error
    params, adapter = dict(restored.state), None
    method = method_of(settings) if settings["kind"] == "finetune" else Full()
    if not isinstance(method, Full):
        params, adapter = _with_base(folder, settings, method, restored, open_base)
    if param_dtype != "float32":
        params = jax.tree.map(lambda leaf: leaf.astype(param_dtype), params)
    tensors: dict[str, Any] = {}
    if (folder / EXTRAS_FILE).is_file():
        tensors, _ = safetensors_file.read(folder / EXTRAS_FILE)
        params |= replicate(extras.read(tensors, config.hidden_size), params)
    rows = param_mapping.state_dict(config, without_adapter(params), DTYPES[param_dtype])
    rows = {key: dataclasses.replace(tensor, file=restored.path) for key, tensor in rows.items()}
    return Pretrained(
        GLM(config),
        params,
        tokenizer,
        path=str(folder),
        step=restored.step,
        config=settings,
        dtype=imported.get("dtype") or "float32",
        metadata=imported.get("metadata") or {"iteration": restored.step},
        checksum=restored.checksum,
        report=LoadReport(f"glm_jax run {folder}, step {restored.step}", rows | tensors, notes),
        adapter=adapter,
    )


def _with_base(folder, settings, method, restored, open_base):
    """The parameters that the run's method left as they are, with those that it trained."""
    name = settings["init_from"]
    try:
        base = open_base(name)
    except (FormatError, CheckpointError, OSError) as error:
        raise FormatError(
            f"{folder} holds what the method {method.name} trained on {name}, which cannot be opened: {error}; open "
            f"that model where it lies now, with adapter={str(folder)!r}"
        ) from error
    trained_on, found = (restored.data_position or {}).get("base"), fingerprint(base.params)
    if trained_on not in (None, found):
        raise FormatError(f"{folder} was trained on parameters {trained_on} of {name}, which now has {found}")
    own = base.model_params
    settings = {
        "method": method.name, "settings": method.hyperparameters(), "head": None, "path": str(folder),
        "base": {"name": name, "fingerprint": found},
    }  # fmt: skip
    return combine(method, restored.state, own), settings
