"""Writing a model for others: the hub's layout, the original's with any number of shards, or a run folder.

A folder appears under its name only when it is complete.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from glm_jax.files import write_json_atomic
from glm_jax.interop import extras, hub, hub_tokenizer, megatron, param_mapping, safetensors_file
from glm_jax.interop.load import EXTRAS_FILE, Pretrained
from glm_jax.interop.tensors import DTYPES, FLOATS, LazyTensor
from glm_jax.model.config import GLMConfig
from glm_jax.tokenizers.base import Tokenizer
from glm_jax.tokenizers.released import ReleasedTokenizer
from glm_jax.training.checkpoint import Checkpointer

FORMATS = ("glm_jax", "hub", "megatron")


def export(
    path: str | os.PathLike,
    to: str,
    config: GLMConfig,
    params: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
    *,
    dtype: str = "float32",
    model_parallel: int = 1,
    metadata: Mapping[str, Any] | None = None,
    prompt: Mapping[str, Any] | None = None,
    classifier: Mapping[str, Any] | None = None,
    shard_bytes: int = 5_000_000_000,
) -> list[str]:
    """Writes a model to the new folder `path` and returns what a reader should know, one line each.

    Tensors are converted one at a time. The hub's layout has no files of code: to use it with transformers, copy
    configuration_glm.py, modeling_glm.py and tokenization_glm.py from a published GLM beside it.

    Args:
      to: "glm_jax" (a run folder), "hub" (safetensors, config.json, tokenizer files) or "megatron" (the original's).
      dtype: of the tensors; a run folder is always float32.
      model_parallel: shards of the original's layout.
      metadata: the original's other entries, such as its iteration.
      prompt, classifier: as in `Pretrained`.
      shard_bytes: largest file of the hub's layout.

    Raises:
      ValueError: unknown format or dtype, a folder that exists, parameters of another model, a number of shards that
        does not divide the heads, the width and the vocabulary. Nothing is left behind.
    """
    if to not in FORMATS:
        raise ValueError(f"unknown format {to!r}; known: {', '.join(FORMATS)}")
    if dtype not in FLOATS[:3]:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(FLOATS[:3])}")
    if model_parallel < 1 or config.num_heads % model_parallel:
        raise ValueError(f"model_parallel {model_parallel} must be a divisor of the {config.num_heads} attention heads")
    if model_parallel > 1 and to != "megatron":
        raise ValueError(f"model_parallel {model_parallel}: only the original's layout (megatron) is cut into shards")
    notes: list[str] = []
    tensors = param_mapping.state_dict(config, params, DTYPES[dtype])
    flavor = "hub" if to == "hub" else "megatron"
    extra = extras.state_dict(prompt, classifier, flavor, DTYPES[dtype])
    with _new_folder(pathlib.Path(path)) as folder:
        if to == "glm_jax":
            _write_run(folder, config, params, tokenizer, extra, {"dtype": dtype, "metadata": dict(metadata or {})})
            return notes
        spell = (extras.function_of(prompt), len(prompt["embedding"])) if prompt else None
        config_json = hub.config_json(config, dtype, prompt=spell, classifier=classifier is not None)
        rows: dict[int, tuple[int, str]] = {}
        if to == "hub" and isinstance(tokenizer, ReleasedTokenizer):
            tokenizer, rows = hub_tokenizer.for_hub(tokenizer)
            for name, content in hub_tokenizer.files(tokenizer).items():
                (folder / name).write_bytes(content)
        elif tokenizer is not None:
            tokenizer.save(folder / "tokenizer")
        for new, (old, why) in rows.items():
            notes.append(f"row {new} of the vocabulary is a copy of row {old}: {why}")
        tensors = _with_rows(tensors, rows)
        if classifier is not None:  # the wrappers with a head keep the model in an attribute
            tensors = {("glm." if to == "hub" else "model.") + key: tensor for key, tensor in tensors.items()}
        if to == "hub":
            stated = {
                key: getattr(config, key) for key in hub.FIELDS if key not in ("attention_dropout", "hidden_dropout")
            }
            hub.write_folder(folder, tensors | extra, config_json, stated, shard_bytes)
        else:
            megatron.write_folder(folder, tensors | extra, model_parallel, metadata)
            write_json_atomic(
                folder / hub.CONFIG, config_json
            )  # the original does not read it; the heads stand nowhere else
    return notes


def export_loaded(
    path: str | os.PathLike, to: str, loaded: Pretrained, dtype: str | None = None, **options: Any
) -> list[str]:
    """`export` of everything that `load` returned, by default in the dtype that it had on disk."""
    return export(
        path, to, loaded.model.config, loaded.params, loaded.tokenizer,
        dtype=dtype or loaded.dtype or "float32", metadata=loaded.metadata,
        prompt=loaded.prompt, classifier=loaded.classifier, **options,
    )  # fmt: skip


def check_new(path: pathlib.Path) -> None:
    """Raises ValueError for a path to which nothing can be exported because something is there."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists: choose another folder, or remove it first")


@contextlib.contextmanager
def _new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    check_new(path)
    temporary = path.absolute().with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _with_rows(tensors, rows):
    if not rows:
        return tensors
    table = tensors["word_embeddings.weight"]

    def read() -> np.ndarray:
        array = np.array(table.read())
        for new, (old, _) in rows.items():
            array[new] = array[old]
        return array

    return {**tensors, "word_embeddings.weight": LazyTensor(table.shape, table.dtype, read)}


def _write_run(folder, config, params, tokenizer, extra, imported):
    write_json_atomic(folder / "config.json", {"model": {"size": None, **vars(config)}, "imported": imported})
    if tokenizer is not None:
        tokenizer.save(folder / "tokenizer")
    if extra:
        safetensors_file.write(folder / EXTRAS_FILE, extra)
    with Checkpointer(folder / "checkpoints") as checkpointer:
        checkpointer.save(int(imported["metadata"].get("iteration", 0)), {"params": params}, None)
