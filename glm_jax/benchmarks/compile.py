"""How long a run takes to start: compilation by depth, and a whole run with a cold and a warm compilation cache."""

import contextlib
import pickle
import subprocess
import sys
import tempfile
import time

import jax
from ml_collections import ConfigDict

from glm_jax import config as defaults
from glm_jax import data
from glm_jax.data.synthetic import SPECIAL, random_rows
from glm_jax.model.config import GLMConfig
from glm_jax.planning.estimate import abstract_rows
from glm_jax.training import setup

DEEPEST_BOUND = 1.2  # how long compiling the deepest step may take, relative to the shallowest
WARM_BOUND = 10.0  # seconds until the first step of a run with a warm cache
_START = (
    "import sys, pickle, logging; logging.basicConfig(level=logging.INFO, format='%(message)s'); "
    "config = pickle.load(sys.stdin.buffer); from glm_jax.tuning.train import train; "
    "from glm_jax.training.host_memory import keep_freed_memory; keep_freed_memory(); train(config, sys.argv[1])"
)
_FIRST_STEP = "first step done"


def run(config: ConfigDict, depths: tuple[int, ...] = (12, 48), width: int = 64, size: str = "base") -> dict:
    """Compiles a small model at each of `depths`, and starts `config` twice with a model of a named `size`.

    The run that is started computes in float32 without dropout, reads the text of the config, 4 rows per step and
    device, and is killed after its first step. `size` "config" starts the config unchanged.
    """
    compiled = {str(depth): _compilation(depth, width) for depth in depths}
    started = config.copy_and_resolve_references()
    if size != "config":
        started.model.update(defaults.pretrain().model)
        vocabulary = GLMConfig.named(size).vocab_size
        started.model.update({"size": size, "vocab_size": vocabulary, "dtype": "float32"})
        started.model.hidden_dropout = started.model.attention_dropout = 0.0
        started.batch_size = 4 * jax.device_count()
    data.load(started.data.to_dict())  # preparing text is not what is measured
    with tempfile.TemporaryDirectory() as folder:
        started.compilation_cache = f"{folder}/compiled"
        cold, warm = (first_step(started, f"{folder}/{name}") for name in ("cold", "warm"))
    seconds = {depth: parts["lowering"] + parts["compilation"] for depth, parts in compiled.items()}
    ratio = seconds[str(depths[-1])] / seconds[str(depths[0])]
    return {
        "value": ratio,
        "unit": f"seconds to lower and compile {depths[-1]} layers over those of {depths[0]} layers",
        "bound": DEEPEST_BOUND,
        "fraction_of_bound": ratio / DEEPEST_BOUND,
        "seconds_by_layers": compiled,
        "first_step_cold_seconds": cold,
        "first_step_warm_seconds": warm,
        "first_step_bound_seconds": WARM_BOUND,
        "started": "the config"
        if size == "config"
        else f"{size}, {started.batch_size} rows of {started.data.sequence_length}",
        "counting": "compilation of scanned layers without any cache; a start is timed from calling the interpreter "
        "until the trainer's first step is done; the text is prepared beforehand",
    }


def _compilation(depth: int, width: int) -> dict[str, float]:
    config = defaults.pretrain()
    config.model.update({"num_layers": depth, "hidden_size": width, "num_heads": 2, "max_position_embeddings": 128})
    config.data.sequence_length, config.batch_size = 64, jax.device_count()
    mesh, rules = setup.check(config)
    _, ends = random_rows(1, 64)
    schedule = setup.resolve_durations(config, rows=1000)
    with _no_cache():
        built = setup.make_setup(
            config, schedule, mesh, rules, vocab_size=len(ends), special=SPECIAL, sentence_ends=ends
        )  # fmt: skip
        rows = abstract_rows(config, mesh, rules)
        with built.activate():
            began = time.perf_counter()
            lowered = built.train_step.lower(built.abstract_state, rows)
            lowered_at = time.perf_counter()
            lowered.compile()
            return {"lowering": lowered_at - began, "compilation": time.perf_counter() - lowered_at}


@contextlib.contextmanager
def _no_cache():
    previous = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", previous)


def first_step(config: ConfigDict, workdir: str) -> float:
    """Seconds from the start of a process that trains `config` in `workdir` until its first step is done.

    The process is then killed. Raises RuntimeError with its last lines when it ends earlier.
    """
    began = time.perf_counter()
    with tempfile.TemporaryFile() as file:
        pickle.dump(config, file)
        file.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-c", _START, workdir], stdin=file, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
    lines: list[str] = []
    try:
        for line in process.stderr:
            lines.append(line)
            if _FIRST_STEP in line:
                return time.perf_counter() - began
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    raise RuntimeError("the run ended before its first step: " + "".join(lines[-5:]))
