"""How long a run takes to begin: compilation by depth, and the start of a whole run with a cold and a warm cache."""

import contextlib
import pickle
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from glm_jax import config as defaults
from glm_jax import data
from glm_jax.data.synthetic import SPECIAL, made_up_rows
from glm_jax.model.config import GLMConfig
from glm_jax.planning.estimate import abstract_rows
from glm_jax.training import setup

DEEPER = 1.2  # what the deepest step may cost, in compilations of the shallowest
WARM = 10.0  # seconds to the first step
_START = (
    "import sys, pickle, logging; logging.basicConfig(level=logging.INFO, format='%(message)s'); "
    "from glm_jax.training.host_memory import keep_freed_memory; keep_freed_memory(); "
    "config = pickle.load(sys.stdin.buffer); from glm_jax.tuning.train import train; train(config, sys.argv[1])"
)
_FIRST_STEP = "first step done"


def run(config: ConfigDict, depths: tuple[int, ...] = (12, 48), width: int = 64, size: str = "base") -> dict:
    """Compiles a small model at each of `depths`, and starts `config` twice with a model of a named `size`.

    The started run computes in float32 without dropout, reads the config's text, 4 rows a step and device, and is ended
    after its first step. `size` "config" starts what the config says.
    """
    compiled = {str(depth): _compilation(depth, width) for depth in depths}
    own = config.copy_and_resolve_references()
    if size != "config":
        own.model.update(defaults.pretrain().model)
        vocabulary = GLMConfig.named(size).vocab_size
        own.model.update({"size": size, "vocab_size": vocabulary, "dtype": "float32"})
        own.model.hidden_dropout = own.model.attention_dropout = 0.0
        own.batch_size = 4 * jax.device_count()
    data.load(own.data.to_dict())  # preparing text is not what is measured
    with tempfile.TemporaryDirectory() as folder:
        own.compilation_cache = f"{folder}/compiled"
        cold, warm = (first_step(own, f"{folder}/{name}") for name in ("cold", "warm"))
    seconds = {depth: parts["lowering"] + parts["compilation"] for depth, parts in compiled.items()}
    figure = seconds[str(depths[-1])] / seconds[str(depths[0])]
    return {
        "figure": figure,
        "unit": f"compilations of {depths[0]} layers that one of {depths[-1]} layers costs, lowering included",
        "bound": DEEPER,
        "fraction_of_bound": figure / DEEPER,
        "seconds_by_layers": compiled,
        "first_step_cold_seconds": cold,
        "first_step_warm_seconds": warm,
        "first_step_bound_seconds": WARM,
        "started": "the config" if size == "config" else f"{size}, {own.batch_size} rows of {own.data.sequence_length}",
        "counting": "compilation without any cache, of scanned layers; starts from the call of the interpreter until "
        "the first step of the trainer is done, its text prepared",
    }


def _compilation(depth: int, width: int) -> dict[str, float]:
    config = defaults.pretrain()
    config.model.update({"num_layers": depth, "hidden_size": width, "num_heads": 2, "max_position_embeddings": 128})
    config.data.sequence_length, config.batch_size = 64, jax.device_count()
    mesh, rules = setup.check(config)
    _, ends = made_up_rows(1, 64)
    schedule = setup.resolve_durations(config, rows=1000)
    with _no_cache():
        built = setup.make_setup(
            config, schedule, mesh, rules, vocab_size=len(ends), special=SPECIAL, sentence_ends=ends
        )  # fmt: skip
        rows = abstract_rows(config, mesh, rules)
        with built.activate():
            began = time.perf_counter()
            lowered = built.train_step.lower(built.abstract_state, rows)
            between = time.perf_counter()
            lowered.compile()
            return {"lowering": between - began, "compilation": time.perf_counter() - between}


@contextlib.contextmanager
def _no_cache():
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def first_step(config: ConfigDict, workdir: str) -> float:
    """Seconds from the start of a process that trains `config` in `workdir` until its first step is done.

    The process is then killed. Raises RuntimeError with its last words when it ends before.
    """
    began = time.perf_counter()
    with tempfile.TemporaryFile() as given:
        pickle.dump(config, given)
        given.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-c", _START, workdir], stdin=given, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
    said: list[Any] = []
    try:
        for line in process.stderr:
            said.append(line)
            if _FIRST_STEP in line:
                return time.perf_counter() - began
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    raise RuntimeError("the run ended before its first step: " + "".join(said[-5:]))
