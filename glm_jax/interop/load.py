"""One opener for every checkpoint: runs of this package, the hub's folders and ids, the original's folders."""

import functools
import os
import pathlib
import re

from jax.sharding import Mesh

from glm_jax.distributed import sharding
from glm_jax.interop import hub, megatron, open_run
from glm_jax.interop.errors import FormatError
from glm_jax.interop.open_source import open_source
from glm_jax.interop.pretrained import Pretrained
from glm_jax.interop.tensors import check_dtype
from glm_jax.interop.tokenizer_check import choose_tokenizer
from glm_jax.tokenizers.base import Tokenizer

_RECOGNIZERS = {"megatron": megatron.recognizes, "hub": hub.recognizes, "glm_jax": open_run.recognizes}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_HUB_FILES = ["*.json", "*.safetensors", "pytorch_model*.bin", "vocab.txt", "merges.txt", "*.model"]


def from_pretrained(
    path: str | os.PathLike,
    *,
    step: int | str | None = None,
    dtype: str | None = None,
    param_dtype: str = "float32",
    mesh: Mesh | None = None,
    rules: sharding.Rules = sharding.RULES,
    tokenizer: Tokenizer | str | os.PathLike | None = None,
    num_heads: int | None = None,
    gelu: str | None = None,
    fix_command_token: bool = True,
    adapter: str | os.PathLike | None = None,
) -> Pretrained:
    """Opens a trained or released model. Nothing in a checkpoint can run code.

    Args:
      path: the folder of a run (its --workdir), of the original (latest_checkpointed_iteration.txt,
        mp_rank_XX_model_states.pt) or of the hub (config.json, *.safetensors or pytorch_model*.bin); or a hub id such
        as "THUDM/glm-10b", when huggingface_hub is installed.
      step: of a run: a number, "latest" or "best"; by default the best of fine-tuning, the latest of pretraining.
      dtype: "float32", "bfloat16" or "float16", to compute in; by default the run's own, float32 for other checkpoints.
      param_dtype: of the parameters.
      mesh: where the parameters go; by default all devices, as decoding is fastest (`inference_mesh`).
      rules: logical axis -> mesh axes.
      tokenizer: one, or the folder of one (its vocabulary files, or what `Tokenizer.save` wrote), to be used instead of
        the checkpoint's own; the original's checkpoints have none.
      num_heads: attention heads, for a checkpoint of the original in an unpublished size: no tensor shows it.
      gelu: "tanh" or "exact", for checkpoints of others. By default as the code that the format belongs to: the
        original's tanh, the hub's exact.
      adapter: folder of an adapter, of a run that has one, or of one in peft's layout; see `Pretrained.with_adapter`.
      fix_command_token: False for the original's weights of 10b-chinese, where [gMASK] shares the id of <|endofpiece|>.

    Raises:
      CheckpointError: a run folder without a readable checkpoint.
      FormatError: the checkpoint is damaged, incomplete, contradictory, unsafe or of another kind of model; or its
        tokenizer does not fit the vocabulary. The message names file and tensor.
      ValueError: an unknown dtype, or a mesh that cannot hold the parameters.
    """
    if adapter is not None:
        base = from_pretrained(
            path, step=step, dtype=dtype, param_dtype=param_dtype, mesh=mesh, rules=rules, tokenizer=tokenizer,
            num_heads=num_heads, gelu=gelu, fix_command_token=fix_command_token,
        )  # fmt: skip
        return base.with_adapter(adapter)
    for name in (param_dtype,) if dtype is None else (dtype, param_dtype):
        check_dtype(name)
    folder = _locate(path)
    kind = _kind_of(folder)
    placement = {"param_dtype": param_dtype, "mesh": mesh, "rules": rules}
    if kind == "glm_jax":
        for name, value in (("num_heads", num_heads), ("gelu", gelu)):
            if value is not None:
                raise FormatError(f"{folder} is a run of glm_jax, whose config states {name}: leave {name} out")
        return open_run.open_run(
            folder, choose_tokenizer(tokenizer, folder), own_tokenizer=tokenizer is None, step=step, dtype=dtype,
            open_base=functools.partial(from_pretrained, mesh=mesh, rules=rules), **placement,
        )  # fmt: skip
    if step is not None:
        raise FormatError(f"{folder} is no run of glm_jax: it has no step {step!r} to choose; leave the step out")
    chosen = choose_tokenizer(tokenizer, folder, fix_command_token)
    source = (megatron if kind == "megatron" else hub).open_folder(folder)
    if kind == "megatron" and (folder / hub.CONFIG).is_file():
        source.declared |= hub.read_config(folder / hub.CONFIG, source.notes)
    source.tokenizer = chosen
    given = {"num_heads": num_heads, "gelu": gelu}
    return open_source(source, given=given, dtype=dtype or "float32", **placement)


def _locate(path):
    """The folder of a path or a hub id; of a run's checkpoints/, the run's."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"from_pretrained takes a folder or a hub id, not {type(path).__name__}")
    folder = pathlib.Path(path)
    if folder.is_dir():
        return folder.parent if folder.name == "checkpoints" and open_run.recognizes(folder.parent) else folder
    if folder.exists():
        raise FormatError(f"{folder} is a file: give the folder of the checkpoint, {folder.parent.absolute()}")
    if not _HUB_ID.fullmatch(str(path)):
        raise FormatError(f"{folder} does not exist, and is no hub id such as THUDM/glm-10b")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FormatError(
            f"{path} is no folder; to fetch it as a hub id, install huggingface_hub (pip install huggingface_hub)"
        ) from None
    try:
        return pathlib.Path(snapshot_download(str(path), allow_patterns=_HUB_FILES))
    except Exception as error:  # of the hub's client: many types, among them those of its HTTP library
        raise FormatError(
            f"{path} does not exist here, and could not be fetched from the hub: {type(error).__name__}; check the path"
        ) from error


def _kind_of(folder):
    """The one layout that a folder has."""
    kinds = [kind for kind, recognizes in _RECOGNIZERS.items() if recognizes(folder)]
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        raise FormatError(f"{folder} looks like {' and '.join(kinds)} at once{_EXPECTED}")
    inside = [child.name for child in sorted(folder.iterdir()) if child.is_dir()]
    inside = [name for name in inside if any(recognizes(folder / name) for recognizes in _RECOGNIZERS.values())]
    if inside:
        raise FormatError(
            f"{folder} holds no checkpoint that is known, but folders inside it do: {', '.join(inside[:5])}; "
            "give one of them"
        )
    raise FormatError(f"{folder} holds no checkpoint that is known{_EXPECTED}")


_EXPECTED = (
    f": expected {megatron.TRACKER} with mp_rank_XX_model_states.pt, or model.safetensors or pytorch_model.bin with "
    "config.json, or a run folder with checkpoints/"
)
