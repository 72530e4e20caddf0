"""Golden summaries of small plans: shardings and collectives.

    PYTHONPATH=.venv/libtpu JAX_PLATFORMS=cpu python -m tests.helpers.plan_summaries    # writes tests/plans/

There is one file per libtpu version, because another compiler may choose other collectives.
"""

import importlib.metadata
import importlib.util
import json
import os
import pathlib

import pytest

from glm_jax.planning import topologies
from tests.helpers.paths import ROOT, TESTS


def _why_not():
    try:
        topologies.check_libtpu()
    except topologies.PlanningError as error:
        return str(error)
    return ""


needs_libtpu = pytest.mark.skipif(bool(_why_not()), reason=_why_not())

CASES = {
    "v5e:2x2 fsdp=4": ("v5e:2x2", 1, {"mesh.fsdp": 4}),
    "v5p:2x2x1 fsdp=2 tensor=2": ("v5p:2x2x1", 1, {"mesh.fsdp": 2, "mesh.tensor": 2}),
    "2 x v5e:2x2 data=2 fsdp=4": ("v5e:2x2", 2, {"mesh.data": 2, "mesh.fsdp": 4}),
}


def path() -> pathlib.Path:
    """The golden file of the installed libtpu."""
    version = ".".join(importlib.metadata.version("libtpu").split(".")[:3])
    return TESTS / "plans" / f"libtpu_{version}.json"


def config(changes):
    """A model that compiles in seconds and whose arrays still fill the chips' tiles."""
    from glm_jax import config as defaults

    config = defaults.pretrain()
    config.train_duration = "10 steps"
    config.batch_size = 32
    config.data.sequence_length = 64
    config.data.tokenizer.vocab_size = 1024
    config.model.num_layers = 3
    config.model.hidden_size = 256
    config.model.num_heads = 4
    config.model.max_position_embeddings = 128
    config.model.hidden_dropout = config.model.attention_dropout = 0.0
    config.model.remat = "full"
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


def ten_billion():
    """The largest published model, as its config trains it."""
    path = ROOT / "configs/pretrain/glm_10b.py"
    spec = importlib.util.spec_from_file_location("glm_10b", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def summary(name):
    """What a refactoring must not change without being noticed."""
    import jax

    from glm_jax.planning import estimate, hlo

    topology, slices, changes = CASES[name]
    compiled = estimate.compile_step(config(changes), topology, slices)
    counts = hlo.count(compiled.text, compiled.built.mesh.size)
    collectives = {}
    for one in counts.collectives:
        if one.payload >= 16384:
            key = f"{one.kind} among {len(one.groups[0])}"
            collectives[key] = collectives.get(key, 0) + one.bytes * one.times
    shardings = {
        jax.tree_util.keystr(path, simple=True, separator="/"): str(sharding.spec)
        for path, sharding in jax.tree_util.tree_leaves_with_path(compiled.built.shardings.params)
    }
    return {
        "mesh": dict(compiled.built.mesh.shape),
        "shardings": shardings,
        "collectives": {key: round(value) for key, value in sorted(collectives.items())},
        "flops": counts.flops,
        "uncounted_loops": counts.unknown_loops,
        "gathered_activation_bytes": estimate.gathered_activations(counts, compiled.built),
    }


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    path().write_text(json.dumps({name: summary(name) for name in CASES}, indent=1) + "\n")
