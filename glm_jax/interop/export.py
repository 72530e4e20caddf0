"""Writing a model for others: the hub's layout, the original's with any number of shards, or a run folder.

A folder appears under its name only when it is complete.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from glm_jax.files import nearest, write_json_atomic
from glm_jax.interop import extras, hub, hub_tokenizer, megatron, param_mapping, peft, safetensors_file
from glm_jax.interop.adapter import fingerprint, write_adapter
from glm_jax.interop.folders import check_new, new_folder
from glm_jax.interop.open_run import EXTRAS_FILE
from glm_jax.interop.pretrained import Pretrained
from glm_jax.interop.tensors import DTYPES, LazyTensor, check_dtype
from glm_jax.methods import LoRA, has_adapter, make_method, without_adapter
from glm_jax.model.config import GLMConfig
from glm_jax.tokenizers.base import Tokenizer
from glm_jax.tokenizers.released import ReleasedTokenizer
from glm_jax.training.checkpoint import Checkpointer

FORMATS = ("glm_jax", "hub", "megatron", "adapter", "peft")
_HUB_SHARD_BYTES = 5_000_000_000
# Wrappers with a classification head keep the model in an attribute, which prefixes its names.
_PREFIX_BESIDE_A_HEAD = {"hub": "glm.", "megatron": "model."}


def export(
    run: Pretrained,
    path: str | os.PathLike,
    to: str,
    *,
    dtype: str | None = None,
    model_parallel: int = 1,
    shard_bytes: int = _HUB_SHARD_BYTES,
) -> list[str]:
    """Writes a model to the new folder `path`, and returns what a reader should know, one line each.

    Classifier and soft prompt go along. Tensors are converted one at a time. The hub's layout has no files of code: to
    use it with transformers, copy configuration_glm.py, modeling_glm.py and tokenization_glm.py from a published GLM
    beside it.

    Args:
      run: from `from_pretrained`; of a model in memory, Pretrained(model, params, tokenizer).
      to: "glm_jax" (a run folder), "hub" (safetensors, config.json, tokenizer files) or "megatron" (the original's); of
        a model with an adapter, "adapter" (that alone, see `interop.adapter`) or "peft" (LoRA, in peft's layout).
      dtype: of the tensors; by default what they had on disk, else float32. A run folder is always float32.
      model_parallel: shards of the original's layout.
      shard_bytes: largest file of the hub's layout.

    Raises:
      ValueError: an unknown format or dtype, a folder that exists, parameters of another model, an adapter
        or none, a number of shards that does not divide the heads, the width and the vocabulary. Nothing is left
        behind.
    """
    config, dtype = run.model.config, dtype or run.dtype or "float32"
    if to in ("adapter", "peft"):
        return _export_adapter(run, pathlib.Path(path), to)
    if has_adapter(run.params):
        raise ValueError(
            f"{run.path} has an adapter: export its merge (Pretrained.merge, convert --merge); prefixes and prompts "
            "cannot be merged, and stay adapters"
        )
    if run.model.config.layout != "glm" and to in ("hub", "megatron"):
        raise ValueError(
            f"a model of the layout {run.model.config.layout!r} is no GLM, for which {to!r} is: export to glm_jax"
        )
    _check_options(config, to, dtype, model_parallel, shard_bytes)
    tensors = param_mapping.state_dict(config, run.params, DTYPES[dtype])
    with new_folder(pathlib.Path(path)) as folder:
        if to == "glm_jax":
            _write_run(folder, run, dtype)
            return []
        table_rows = _write_tokenizer(folder, run.tokenizer, to)
        tensors = _with_copied_rows(tensors, table_rows)
        tensors = _with_extras(tensors, run.params, to, dtype)
        config_json = _config_json(config, run.params, dtype)
        if to == "hub":
            hub.write_folder(folder, tensors, config_json, _stated_fields(config), shard_bytes)
        else:
            megatron.write_folder(folder, tensors, model_parallel, run.metadata)
            # The original does not read this file; nothing else states the number of heads.
            write_json_atomic(folder / hub.CONFIG, config_json)
    return [f"row {new} of the vocabulary is a copy of row {old}: {why}" for new, (old, why) in table_rows.items()]


def _export_adapter(run, path, to):
    if run.adapter is None:
        raise ValueError(f"{run.path} has no adapter to export: open it with one, or choose another format")
    method = make_method(run.adapter["method"], run.adapter["settings"])
    trained = method.split(run.params)[0]
    base = run.adapter.get("base") or {"name": run.path, "fingerprint": fingerprint(without_adapter(run.params))}
    if to == "adapter":
        check_new(path)
        # Raises for what could not be opened, such as a rank that peft allows and a kernel does not.
        base_params = without_adapter(run.params)
        jax.eval_shape(lambda key: method.add(base_params, run.model.config, key), jax.random.key(0))
        write_adapter(path, method, trained, run.model.config, base, run.pool)
        return []
    if not isinstance(method, LoRA):
        raise ValueError(f"peft's layout is for 'lora', but the adapter's method is {method.name!r}: choose 'adapter'")
    peft.write(path, method, trained, run.model.config, base["name"], "glm." if "classifier" in run.params else "")
    lost = ["the classification head is not in peft's layout: keep the adapter for it"] * ("classifier" in trained)
    return lost


def _check_options(config: GLMConfig, to: str, dtype: str, model_parallel: int, shard_bytes: int) -> None:
    if to not in FORMATS:
        raise ValueError(f"unknown format {to!r}; nearest: {nearest(to, FORMATS)}")
    check_dtype(dtype)
    if model_parallel < 1 or config.num_heads % model_parallel:
        raise ValueError(f"model_parallel {model_parallel} must be a divisor of the {config.num_heads} attention heads")
    if model_parallel > 1 and to != "megatron":
        raise ValueError(f"model_parallel {model_parallel}: only the original's layout (megatron) is cut into shards")
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes {shard_bytes} must be at least 1")


def _write_run(folder: pathlib.Path, run: Pretrained, dtype: str) -> None:
    imported = {"dtype": dtype, "metadata": dict(run.metadata)}
    model = {"size": None, **vars(run.model.config)}
    write_json_atomic(folder / "config.json", {"model": model, "imported": imported})
    if run.tokenizer is not None:
        run.tokenizer.save(folder / "tokenizer")
    if tensors := extras.state_dict(run.params, "megatron", DTYPES[dtype]):
        safetensors_file.write(folder / EXTRAS_FILE, tensors)
    data = None if run.tokenizer is None else {"tokenizer": run.tokenizer.fingerprint()}
    with Checkpointer(folder / "checkpoints") as checkpointer:
        checkpointer.save(int(run.metadata.get("iteration", 0)), {"params": run.model_params}, data)


def _write_tokenizer(folder: pathlib.Path, tokenizer: Tokenizer | None, to: str) -> dict[int, tuple[int, str]]:
    """Writes the tokenizer, if any; returns which rows of the vocabulary become copies: row -> (copied row, why)."""
    if tokenizer is None:
        return {}
    if to == "hub" and isinstance(tokenizer, ReleasedTokenizer):
        tokenizer, rows = hub_tokenizer.for_hub(tokenizer)
        for name, content in hub_tokenizer.files(tokenizer).items():
            (folder / name).write_bytes(content)
        return rows
    tokenizer.save(folder / "tokenizer")
    return {}


def _with_copied_rows(tensors: dict[str, LazyTensor], rows: Mapping[int, tuple[int, str]]) -> dict[str, LazyTensor]:
    if not rows:
        return tensors
    table = tensors["word_embeddings.weight"]

    def read() -> np.ndarray:
        array = np.array(table.read())
        for new, (old, _) in rows.items():
            array[new] = array[old]
        return array

    return {**tensors, "word_embeddings.weight": LazyTensor(table.shape, table.dtype, read)}


def _with_extras(tensors: dict[str, LazyTensor], params: Mapping[str, Any], to: str, dtype: str):
    """Adds soft prompt and classifier."""
    if "classifier" in params:
        tensors = {_PREFIX_BESIDE_A_HEAD[to] + key: tensor for key, tensor in tensors.items()}
    return tensors | extras.state_dict(params, to, DTYPES[dtype])


def _config_json(config: GLMConfig, params: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    prompt = params.get("prompt")
    spell = (extras.function_of(prompt), len(prompt["embedding"])) if prompt else None
    return hub.config_json(config, dtype, prompt=spell, classifier="classifier" in params)


def _stated_fields(config: GLMConfig) -> dict[str, Any]:
    """The fields that the hub's weights file repeats: those that decide what the model computes."""
    return {name: getattr(config, name) for name in hub.FIELDS if name not in ("attention_dropout", "hidden_dropout")}
