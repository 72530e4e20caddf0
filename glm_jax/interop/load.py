"""Opening a model, whoever saved it: the original's code, the hub's, or this one."""

import dataclasses
import json
import logging
import os
import pathlib
import re
from typing import Any

import jax
from jax.sharding import Mesh

from glm_jax.config import model_config
from glm_jax.distributed import sharding
from glm_jax.distributed.mesh import inference_mesh
from glm_jax.interop import extras, hub, hub_tokenizer, megatron, param_mapping, safetensors_file
from glm_jax.interop.errors import FormatError
from glm_jax.interop.load_report import LoadReport
from glm_jax.interop.placement import place
from glm_jax.interop.source import Source, config_of
from glm_jax.interop.tensors import DTYPES, FLOATS
from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import GLM, init_params
from glm_jax.tokenizers.base import Tokenizer
from glm_jax.training.checkpoint import CheckpointError
from glm_jax.training.workdir import RunFolder, load_run, restore_run

logger = logging.getLogger(__name__)

EXTRAS_FILE = "extras.safetensors"  # soft prompt and classification head of an imported run
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_HUB_FILES = ["*.json", "*.safetensors", "pytorch_model*.bin", "vocab.txt", "merges.txt", "*.model"]


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model from disk.

    Attributes:
      params: float32 (or `param_dtype`), on the mesh; `model.apply({"params": params}, …)`.
      tokenizer: None where the folder has none.
      prompt: for glm_jax.prompt_spell; None where the checkpoint has none.
      classifier: for glm_jax.heads; None where the checkpoint has none.
      report: every tensor and where it came from.
      dtype: of the tensors on disk; None where they differ.
      metadata: the checkpoint's other plain entries, such as its iteration.
    """

    model: GLM
    params: Any
    tokenizer: Tokenizer | None
    prompt: dict | None
    classifier: dict | None
    report: LoadReport
    dtype: str | None
    metadata: dict[str, Any]


def from_pretrained(
    path: str | os.PathLike, dtype: str = "float32", **options: Any
) -> tuple[GLM, Any, Tokenizer | None]:
    """A released or trained model: (model, parameters, tokenizer or None).

    Args:
      path: a folder of the original (latest_checkpointed_iteration.txt, mp_rank_XX_model_states.pt), of the hub
        (config.json, *.safetensors or pytorch_model*.bin), or of a run of glm_jax; or a hub id such as
        "THUDM/glm-10b" when huggingface_hub is installed. Nothing in it can run code.
      dtype: what to compute in; the parameters are float32.
      options: as for `load`, which also returns soft prompts, classification heads and the report.

    Raises as `load`.
    """
    loaded = load(path, dtype, **options)
    for name, part in (("soft prompt", loaded.prompt), ("classification head", loaded.classifier)):
        if part is not None:
            logger.warning("%s has a %s, which from_pretrained leaves out; glm_jax.interop.load returns it", path, name)
    return loaded.model, loaded.params, loaded.tokenizer


def open_model(
    path: str | os.PathLike,
    *,
    step: int | str | None = None,
    dtype: str | None = None,
    tokenizer: str | os.PathLike | None = None,
) -> tuple[GLM, Any, Tokenizer]:
    """What the verbs that use a model open: as `from_pretrained`, with a tokenizer.

    `dtype` is the run's own by default, and float32 for other checkpoints. Raises FormatError where there is no
    tokenizer, and as `load` and `load_run`.
    """
    folder = pathlib.Path(path)
    run = folder.parent if folder.name == "checkpoints" else folder
    if _is_run(run) and tokenizer is None and (run / "tokenizer").exists():
        opened = load_run(run, step, dtype)
        return opened.model, opened.params, opened.tokenizer
    model, params, found = from_pretrained(path, dtype or "float32", step=step, tokenizer=tokenizer)
    return model, params, with_tokenizer(found, path, "tokenizer (--tokenizer)")


def with_tokenizer(tokenizer: Tokenizer | None, path: str | os.PathLike, option: str) -> Tokenizer:
    """The tokenizer of the checkpoint at `path`. Raises FormatError where there is none, naming what gives one."""
    if tokenizer is None:
        raise FormatError(
            f"{path} has no tokenizer: name a folder with its vocabulary (vocab.txt, vocab.json with merges.txt, or "
            f"*.model) in {option}"
        )
    return tokenizer


def load(
    path: str | os.PathLike,
    dtype: str = "float32",
    *,
    step: int | str | None = None,
    mesh: Mesh | None = None,
    rules: sharding.Rules = sharding.RULES,
    param_dtype: str = "float32",
    num_heads: int | None = None,
    gelu: str | None = None,
    tokenizer: Tokenizer | str | os.PathLike | None = None,
    fix_command_token: bool = True,
) -> Pretrained:
    """As `from_pretrained`, with everything that the checkpoint carries.

    Args:
      step: of a run: a number, "latest" or "best"; by default the best of fine-tuning, the latest of pretraining.
      mesh: where the parameters go; by default all devices, as writing is fastest (`mesh.inference_mesh`).
      rules: logical axis -> mesh axes.
      param_dtype: of the parameters.
      num_heads: attention heads, for a checkpoint of the original in an unpublished size: no tensor shows it.
      gelu: "tanh" or "exact". By default as the code that the format belongs to: the original's tanh, the hub's exact.
      tokenizer: one, or the folder of one (its vocabulary files, or what `Tokenizer.save` wrote), to be used instead of
        the checkpoint's own; the original's checkpoints have none.
      fix_command_token: False for the original's weights of 10b-chinese, where [gMASK] shares the id of <|endofpiece|>.

    Raises:
      CheckpointError: a run folder without a readable checkpoint.
      FormatError: the checkpoint is damaged, incomplete, contradictory, unsafe or of another kind of model; or its
        tokenizer does not fit the vocabulary. The message names file and tensor.
      ValueError: an unknown dtype, or a mesh that cannot hold the parameters.
    """
    for name in (dtype, param_dtype):
        if name not in FLOATS[:3]:
            raise ValueError(f"dtype {name!r} is not one of {', '.join(FLOATS[:3])}")
    folder = _locate(path)
    kinds = {"megatron": megatron.recognizes, "hub": hub.recognizes, "glm_jax": _is_run}
    found = [kind for kind, recognizes in kinds.items() if recognizes(folder)]
    if len(found) != 1:
        what = f"looks like {' and '.join(found)} at once" if found else "holds no checkpoint that is known"
        inside = [child.name for child in sorted(folder.iterdir()) if child.is_dir()]
        inside = [name for name in inside if any(recognizes(folder / name) for recognizes in kinds.values())]
        if inside and not found:
            raise FormatError(f"{folder} {what}, but folders inside it do: {', '.join(inside[:5])}; give one of them")
        raise FormatError(
            f"{folder} {what}: expected {megatron.TRACKER} with mp_rank_XX_model_states.pt, or model.safetensors or "
            "pytorch_model.bin with config.json, or a run folder with checkpoints/"
        )
    if found != ["glm_jax"] and step is not None:
        raise FormatError(f"{folder} is no run of glm_jax: it has no step {step!r} to choose; leave the step out")
    if found == ["glm_jax"]:
        return _load_run(folder, step, dtype, param_dtype, mesh, rules, tokenizer)
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = _read_tokenizer(tokenizer, folder, fix_command_token)
    source = (megatron if found == ["megatron"] else hub).open_folder(folder)
    if found == ["megatron"] and (folder / hub.CONFIG).is_file():
        source.declared |= hub.read_config(folder / hub.CONFIG, source.notes)
    source.tokenizer = tokenizer
    return _load_source(source, dtype, param_dtype, mesh, rules, {"num_heads": num_heads, "gelu": gelu})


def _read_tokenizer(given, folder, fix_command_token=True):
    found = hub_tokenizer.read(folder if given is None else pathlib.Path(given), fix_command_token)
    if found is None and given is not None:
        raise FormatError(f"{given} holds no tokenizer: expected vocab.txt, vocab.json with merges.txt, or *.model")
    return found


def _locate(path):
    folder = pathlib.Path(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise FormatError(f"{folder} is a file: give the folder of the checkpoint, {folder.parent}")
    if not _HUB_ID.fullmatch(str(path)):
        raise FormatError(f"{folder} does not exist, and is no hub id such as THUDM/glm-10b")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FormatError(
            f"{path} is no folder; to fetch it as a hub id, install huggingface_hub (pip install huggingface_hub)"
        ) from None
    return pathlib.Path(snapshot_download(str(path), allow_patterns=_HUB_FILES))


_GELU = {
    "tanh": "GELU with tanh, as in the original's code",
    "exact": "exact GELU, as in the hub's code; the original trained with tanh, and gelu='tanh' gives its logits",
}


def _load_source(source: Source, dtype, param_dtype, mesh, rules, given):
    extra = {key: tensor for key, tensor in source.tensors.items() if extras.is_extra(key)}
    source.tensors = {key: tensor for key, tensor in source.tensors.items() if key not in extra}
    config = config_of(source, dtype=dtype, **given)
    source.notes.append(_GELU[config.gelu])
    param_mapping.check(config, source.tensors)
    odd = [f"{key} is {tensor.dtype}" for key, tensor in source.tensors.items() if str(tensor.dtype) not in FLOATS]
    if odd:
        raise FormatError(f"{source.path}: weights must be floating numbers: {', '.join(odd[:5])}")
    check_tokenizer(source.tokenizer, config, source.notes)
    _warn_of_collision(source, config)
    prompt, classifier = extras.read(extra, config.hidden_size)
    params = _place(config, source.tensors, param_dtype, mesh, rules)
    tensors = source.tensors | extra
    dtypes = {str(tensor.dtype) for tensor in tensors.values()}
    if any(not tensor.checksum for tensor in tensors.values()):
        source.notes.append("a file without checksums: its format cannot show whether bits were flipped")
    if dtypes != {param_dtype}:
        exact = param_dtype == "float32" and "float64" not in dtypes
        source.notes.append(f"{', '.join(dtypes)} was {'widened' if exact else 'rounded'} to {param_dtype}")
    report = LoadReport(f"{source.kind} checkpoint {source.path}", tensors, source.notes)
    logger.info("%s", report.summary())
    kept = dtypes.pop() if len(dtypes) == 1 else None
    return Pretrained(GLM(config), params, source.tokenizer, prompt, classifier, report, kept, source.metadata)


def check_tokenizer(tokenizer: Tokenizer | None, config: GLMConfig, notes: list[str], exact: bool = True) -> None:
    """Raises FormatError for a tokenizer of another size; `exact` allows no other padding than its own."""
    size = config.vocab_size
    if tokenizer is None:
        notes.append(f"no tokenizer; the {size} rows of the vocabulary may include padding")
    elif tokenizer.num_tokens > size or (exact and size not in (tokenizer.num_tokens, tokenizer.vocab_size)):
        raise FormatError(
            f"the tokenizer has {tokenizer.num_tokens} tokens (padded {tokenizer.vocab_size}), the model {size}: "
            "they do not belong together; replace the tokenizer's files, or remove them to load the model alone"
        )
    else:
        padding = size - tokenizer.num_tokens
        notes.append(f"vocabulary {size}: {tokenizer.num_tokens} tokens and {padding} rows of padding")


def _warn_of_collision(source, config):
    """The original's 10b-chinese has no trained row for the [gMASK] that every other Chinese checkpoint has."""
    large = GLMConfig.named("10b-chinese")
    shape = (config.num_layers, config.hidden_size, config.vocab_size)
    if source.kind != "megatron" or shape != (large.num_layers, large.hidden_size, large.vocab_size):
        return
    if source.tokenizer is not None and source.tokenizer.special.generation_mask != source.tokenizer.special.end:
        note = "10b-chinese was trained with [gMASK] on <|endofpiece|>'s id: pass fix_command_token=False "
        note += "(convert --no-fix-command-token)"
        source.notes.append(note)
        logger.warning("%s: %s", source.path, note)


def abstract_params(
    config: GLMConfig,
    mesh: Mesh | None,
    rules: sharding.Rules,
    param_dtype: str,
) -> Any:
    """The parameter tree as `jax.ShapeDtypeStruct`s with shardings."""
    mesh = inference_mesh(config.num_heads, config.vocab_size) if mesh is None else mesh
    boxed = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    abstract = sharding.with_shardings(boxed, sharding.state_shardings(boxed, mesh, rules))
    kind = DTYPES[param_dtype]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, kind, sharding=leaf.sharding), abstract)


def _place(config, tensors, param_dtype, mesh, rules):
    abstract = abstract_params(config, mesh, rules, param_dtype)
    params: dict = {}
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    for path, leaf in place(config, tensors, shardings, DTYPES[param_dtype]):
        branch = params
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        branch[path[-1]] = leaf
    return params


def _is_run(folder):
    return (folder / "checkpoints").is_dir() and (folder / "config.json").is_file()


def _load_run(folder, step, dtype, param_dtype, mesh, rules, tokenizer):
    notes: list[str] = []
    tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else _read_tokenizer(tokenizer, folder)
    try:
        settings = json.loads((folder / "config.json").read_bytes().decode())
        section = {"size": None, **settings["model"], "dtype": dtype}
        imported = dict(settings.get("imported") or {})
        config = model_config(section, tokenizer.vocab_size if tokenizer else 0)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FormatError(f"{folder / 'config.json'} does not describe a model: {error}") from error
    check_tokenizer(tokenizer, config, notes, exact=False)
    try:
        restored = restore_run(RunFolder(folder), settings, config, step, mesh, rules)
    except CheckpointError:
        raise
    except Exception as error:  # Orbax raises many types for damaged folders
        raise FormatError(f"the checkpoints in {folder} cannot be read: {type(error).__name__}: {error}") from error
    params = restored.state
    if param_dtype != "float32":
        params = jax.tree.map(lambda leaf: leaf.astype(param_dtype), params)
    prompt, classifier, extra = None, params.get("classifier"), {}
    params = {name: tree for name, tree in params.items() if name != "classifier"}
    if (folder / EXTRAS_FILE).is_file():
        extra, _ = safetensors_file.read(folder / EXTRAS_FILE)
        prompt, classifier = extras.read(extra, config.hidden_size)
    rows = param_mapping.state_dict(config, params, DTYPES[param_dtype])
    rows = {key: dataclasses.replace(tensor, file=restored.path) for key, tensor in rows.items()}
    report = LoadReport(f"glm_jax run {folder}, step {restored.step}", rows | extra, notes)
    metadata = imported.get("metadata") or {"iteration": restored.step}
    stored = imported.get("dtype") or "float32"
    return Pretrained(GLM(config), params, tokenizer, prompt, classifier, report, stored, metadata)
