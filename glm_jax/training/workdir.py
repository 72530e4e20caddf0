"""What a run leaves on disk, and how it is opened again.

config.json      the resolved config
tokenizer/       the run's own copy
checkpoints/     Orbax steps: parameters, optimizer, data position, metrics
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
from glm_jax.config import model_config, upgrade
from glm_jax.distributed import sharding
from glm_jax.distributed.mesh import inference_mesh
from glm_jax.files import compare_config, config_value, write_json_atomic
from glm_jax.model.classifier_head import with_classifier
from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import GLM, init_params
from glm_jax.training.checkpoint import Checkpointer, Restored

logger = logging.getLogger(__name__)

# Keys that change nothing about what is computed: a run may be continued with other values.
FREE_KEYS = (
    "log_every", "sample_every", "max_to_keep", "mesh.", "logical_axis_rules", "data.data_dir",
    "data.tokenize_workers", "data.loader_workers", "init_from", "compilation_cache",
)  # fmt: skip

BEST = ("validation_loss", "min")  # what the best checkpoint of a run is
BEST_OF_TASKS = ("validation_score", "max")  # of a fine-tuning run


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
    def begun(self) -> bool:
        """Whether there is a checkpoint: one that was being written when the run was killed is none."""
        return any(path.name.isdigit() for path in self.checkpoints.glob("[0-9]*"))

    def check_shared(self) -> None:
        """Raises RunFolderError when this host does not see what process 0 claimed: the disk is not shared."""
        deadline = time.monotonic() + 30  # a network disk may show a new file late
        while not self.config.exists():
            if time.monotonic() > deadline:
                raise RunFolderError(
                    f"{self.config} is not seen on this host: --workdir must lie on a disk that all hosts share"
                )
            time.sleep(0.5)

    def claim(self, config: ConfigDict) -> None:
        """Takes the folder for `config`, or checks that it already belongs to it. Call it on process 0.

        A folder without a checkpoint belongs to nobody: a run that failed at once may be mended and started again.
        Raises RunFolderError when the folder belongs to another config (naming the keys that differ), when its config
        cannot be read, or when the path is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file: choose a folder as --workdir")
        current = json.loads(to_json(config))
        if self.config.exists() and self.begun:
            try:
                saved = json.loads(self.config.read_text())
            except ValueError as error:
                raise RunFolderError(f"{self.config} is not JSON ({error}): choose another --workdir") from error
            keys = [k for k in compare_config(saved, current) if not k.startswith(FREE_KEYS)]
            if keys:
                changes = "; ".join(
                    f"{k}: {config_value(saved, k)!r} there, {config_value(current, k)!r} here" for k in keys
                )
                raise RunFolderError(
                    f"{self.path} belongs to a run with another config ({changes}): "
                    "set these back to resume it, or choose another --workdir"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        write_json_atomic(self.config, current)


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


def best_of(config: Mapping[str, Any]) -> tuple[str, str]:
    """(metric, mode) of the best checkpoint of a run with this config.json."""
    return BEST_OF_TASKS if "tasks" in config else BEST


def parameters_of(config: Mapping[str, Any]) -> Callable[[GLM | GLMConfig, Any], Any]:
    """What makes fresh parameters of a run with this config.json: the model's, and a classifier's where it has one."""
    if not config.get("classes"):
        return init_params
    return functools.partial(with_classifier, config["classes"])


def restore_run(
    folder: RunFolder,
    config: Mapping[str, Any],
    model: GLMConfig,
    step: int | str | None = None,
    mesh: Mesh | None = None,
    rules: sharding.Rules = sharding.RULES,
) -> Restored:
    """The float32 parameters of a run with this config.json, a classifier's among them, on `mesh` or `inference_mesh`.

    `step` is a number, "latest" or "best". None is what the run was for: of fine-tuning the best checkpoint, if its
    scores name one; of pretraining the latest. Raises as `Checkpointer.restore_params`.
    """
    boxed = jax.eval_shape(lambda key: parameters_of(config)(model, key), jax.random.key(0))
    mesh = inference_mesh(model.num_heads, model.vocab_size) if mesh is None else mesh
    abstract = sharding.with_shardings(boxed, sharding.state_shardings(boxed, mesh, rules))
    with Checkpointer(folder.checkpoints, keep_best=best_of(config), read_only=True) as checkpointer:
        if step is None:
            step = "best" if "tasks" in config and checkpointer.best_step() is not None else "latest"
        return checkpointer.restore_params(abstract, int(step) if str(step).isdigit() else step)


def restore_model(folder: RunFolder, step: int | str | None = None) -> tuple[GLMConfig, Restored]:
    """The model of a run, and its parameters as `restore_run` reads them. Raises RunFolderError for no run folder."""
    if not folder.config.exists():
        raise RunFolderError(f"{folder.path} is no run folder: it has no config.json (a --workdir of a training run)")
    config = upgrade(json.loads(folder.config.read_text()))
    model = model_config(config["model"], tokenizers.load(folder.tokenizer).vocab_size)
    return model, restore_run(folder, config, model, step)
