"""What a run leaves on disk, and how it is opened again.

config.json      the resolved config
lock.json        while a process trains: who it is
tokenizer/       the run's own copy
checkpoints/     Orbax steps: parameters, optimizer, data position, tokenizer's fingerprint, metrics
metrics.jsonl    a line per logged step; tensorboard/ holds the same
samples.md       blanks of held-out text, filled during the run
loss.png         the loss curve
result.json      the last validation, with its baselines
"""

import dataclasses
import functools
import json
import logging
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from glm_jax import tokenizers
from glm_jax.config import KINDS, model_config, upgrade, with_defaults
from glm_jax.distributed import sharding
from glm_jax.distributed.mesh import inference_mesh
from glm_jax.files import config_changes, write_json_atomic
from glm_jax.methods import method_of
from glm_jax.model.classifier_head import with_classifier
from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import GLM, init_params
from glm_jax.tokenizers.base import Tokenizer
from glm_jax.training.checkpoint import Checkpointer, Restored
from glm_jax.training.run_lock import RunLock

logger = logging.getLogger(__name__)

# Keys that change nothing about what is computed: a run may be continued with other values.
FREE_KEYS = (
    "log_every", "sample_every", "max_to_keep", "mesh.", "logical_axis_rules", "data.data_dir",
    "data.tokenize_workers", "data.loader_workers", "init_from", "compilation_cache",
)  # fmt: skip

# (metric, mode) of the best checkpoint, by the kind of run.
BEST = {"pretrain": ("validation_loss", "min"), "finetune": ("validation_score", "max")}


class RunFolderError(ValueError):
    """A work folder that cannot be used for this run."""


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths inside the folder of a run."""

    path: pathlib.Path

    @property
    def config(self) -> pathlib.Path:
        """The resolved config."""
        return self.path / "config.json"

    @property
    def tokenizer(self) -> pathlib.Path:
        """A folder for `glm_jax.tokenizers.load`."""
        return self.path / "tokenizer"

    @property
    def checkpoints(self) -> pathlib.Path:
        """The folder of a `Checkpointer`."""
        return self.path / "checkpoints"

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint, in order: one that was being written when the run was killed is none."""
        return sorted(int(path.name) for path in self.checkpoints.glob("[0-9]*") if path.name.isdigit())

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint."""
        return bool(self.steps)

    def finished(self) -> dict[str, Any] | None:
        """The result of a run that is complete; None for one that has something left to do."""
        try:
            result = json.loads((self.path / "result.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return result if self.begun and result.get("step") == self.steps[-1] else None

    def read_config(self) -> dict[str, Any]:
        """config.json with the keys of today. Raises RunFolderError when there is none, or it cannot be read."""
        try:
            config = json.loads(self.config.read_text())
        except FileNotFoundError:
            raise RunFolderError(
                f"{self.path} is no run folder: it has no config.json (a --workdir of a training run)"
            ) from None
        except (ValueError, RecursionError) as error:
            raise RunFolderError(f"{self.config} is not JSON ({error}): choose another --workdir") from error
        if not isinstance(config, dict):
            raise RunFolderError(
                f"{self.config} holds no config, but {type(config).__name__}: choose another --workdir"
            )
        config = upgrade(config)
        if config["kind"] not in KINDS:
            raise RunFolderError(f"{self.config}: kind {config['kind']!r} is not one of {', '.join(KINDS)}")
        return config

    def write_config(self, config: ConfigDict) -> None:
        """Writes config.json. Call it on process 0."""
        write_json_atomic(self.config, json.loads(to_json(config)))

    def check_shared(self) -> None:
        """Raises RunFolderError when this process does not see what process 0 claimed: the disk is not shared."""
        deadline = time.monotonic() + 30  # a network disk may show a new file late
        while not self.config.exists():
            if time.monotonic() > deadline:
                raise RunFolderError(
                    f"{self.config} is not visible on this host: --workdir must be on a disk that all hosts share"
                )
            time.sleep(0.5)

    def lock(self) -> RunLock:
        """The lock of the one process that writes here. Raises RunFolderError when the path is a file."""
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file: choose a folder as --workdir")
        return RunLock(self.path)

    def claim(self, config: ConfigDict) -> None:
        """Takes the folder for `config`, or checks that it already belongs to it. Call it on process 0, with the lock.

        A folder without a checkpoint belongs to nobody: a run that failed at once may be mended and started again.
        In a folder with one nothing is written; `write_config` does that once the resume is known to be valid.
        Raises RunFolderError when the folder belongs to another config (naming the keys that differ), or when its
        config cannot be read.
        """
        if not (self.begun and self.config.exists()):
            self.write_config(config)
            return
        saved, current = with_defaults(self.read_config()), json.loads(to_json(config))
        if changes := config_changes(saved, current, FREE_KEYS):
            raise RunFolderError(
                f"{self.path} belongs to a run with another config ({changes}): "
                "set these back to resume it, or choose another --workdir"
            )

    def check_tokenizer(self, tokenizer: Tokenizer, restored: Restored) -> None:
        """Raises RunFolderError when `tokenizer` is not the one that the checkpoint was trained with.

        Checkpoints of earlier versions do not say which one that was.
        """
        trained_with = (restored.data_position or {}).get("tokenizer")
        if trained_with not in (None, found := tokenizer.fingerprint()):
            raise RunFolderError(
                f"the tokenizer {found} is not {trained_with}, with which "
                f"{restored.path} was trained: put the run's own files back into {self.tokenizer}"
            )

    def check_base(self, fingerprint: str | None, restored: Restored) -> None:
        """Raises RunFolderError when `fingerprint` is not that of the parameters on which the run trains its own."""
        started_from = (restored.data_position or {}).get("base")
        if started_from not in (None, fingerprint):
            raise RunFolderError(
                f"the checkpoint init_from has the parameters {fingerprint}, but {restored.path} was trained on "
                f"{started_from}: set init_from to where that one lies"
            )


def to_json(config: ConfigDict) -> str:
    """The config as JSON text; tuples become lists."""
    return json.dumps(config.to_dict(), default=lambda value: value.to_dict())


def agreed_keys(config: ConfigDict) -> dict:
    """The config without what may differ from host to host."""
    values = json.loads(to_json(config))
    for key in ("data_dir", "tokenize_workers", "loader_workers"):
        values["data"].pop(key, None)
    del values["compilation_cache"]
    return values


def fresh_params(config: Mapping[str, Any]) -> Callable[[GLM | GLMConfig, Any], Any]:
    """What makes fresh parameters of a run with this config.json: the model's, a classifier's, a tuning method's."""
    if config["kind"] == "pretrain":
        return init_params
    base = init_params if config["classes"] is None else functools.partial(with_classifier, config["classes"])
    method = method_of(config)

    def parameters(model, key):
        shape = model if isinstance(model, GLMConfig) else model.config
        return method.add(base(model, key), shape, jax.random.fold_in(key, 2))

    return parameters


def restore_run(
    folder: RunFolder,
    config: Mapping[str, Any],
    model: GLMConfig,
    step: int | str | None = None,
    mesh: Mesh | None = None,
    rules: sharding.Rules = sharding.RULES,
    tokenizer: Tokenizer | None = None,
) -> Restored:
    """The float32 parameters of a run with this config.json, a classifier's among them, on `mesh` or `inference_mesh`.

    Of a tuning method they are those that train.

    `step` is a number, "latest" or "best". None is what the run was for: of fine-tuning the best checkpoint, if its
    scores name one; of pretraining the latest. `config` is what `RunFolder.read_config` returns. Raises as
    `Checkpointer.restore_params`, and as `RunFolder.check_tokenizer` for the run's `tokenizer` where it is given.
    """
    boxed = jax.eval_shape(lambda key: fresh_params(config)(model, key), jax.random.key(0))
    if config["kind"] == "finetune":
        boxed, _ = method_of(config).split(boxed)
    mesh = inference_mesh(model.num_heads, model.vocab_size) if mesh is None else mesh
    abstract = sharding.with_shardings(boxed, sharding.state_shardings(boxed, mesh, rules))
    with Checkpointer(folder.checkpoints, keep_best=BEST[config["kind"]], read_only=True) as checkpointer:
        if step is None:
            step = "best" if config["kind"] == "finetune" and checkpointer.best_step() is not None else "latest"
        restored = checkpointer.restore_params(abstract, int(step) if str(step).isdigit() else step)
    if tokenizer is not None:
        folder.check_tokenizer(tokenizer, restored)
    return restored


def restore_model(folder: RunFolder, step: int | str | None = None) -> tuple[GLMConfig, Restored]:
    """The model of a run, and its parameters as `restore_run` reads them.

    Raises RunFolderError for no run folder, or a tokenizer that is not the one of the checkpoint.
    """
    config, tokenizer = folder.read_config(), tokenizers.load(folder.tokenizer)
    try:
        model = model_config(config["model"], tokenizer.vocab_size)
    except (TypeError, KeyError, AttributeError) as error:
        raise RunFolderError(f"{folder.config} does not describe a model: {type(error).__name__}: {error}") from error
    return model, restore_run(folder, config, model, step, tokenizer=tokenizer)
