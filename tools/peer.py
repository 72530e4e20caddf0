"""One optimizer step beside that of the same model in plain PyTorch: same parameters, same batch, in turns."""

import contextlib
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from glm_jax.benchmarks.step import OpenStep, open_step
from glm_jax.benchmarks.timing import time_against_matmuls
from glm_jax.model.batch import Batch
from glm_jax.training.train_step import apply_loss

_WANTED = 1.2  # times as fast
_SHAPE = ("num_layers", "hidden_size", "num_heads", "hidden_dropout", "attention_dropout", "gelu", "dtype")
_BATCH = (
    "tokens", "position_ids", "block_position_ids", "prefix_lengths", "target_index", "target_ids", "target_weights"
)  # fmt: skip


class Peer:
    """The model of peer_torch.py in a process of its own, and the `loss` that it began with."""

    def __init__(self, process: subprocess.Popen, loss: float):
        self.loss = loss
        self._process = process

    def step(self) -> float:
        """Seconds of one step there."""
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return float(_answer(self._process))


def run(config, repeats: int = 7, python: str = "", mode: str = "compiled") -> dict:
    """How many times as fast as PyTorch a step of `config` is, both on one device, in turns.

    `python` is an interpreter that has torch, by default this one; `mode` "eager" leaves out torch.compile, which needs
    a C++ compiler on CPUs.

    Raises ValueError for a config that the peer cannot compute, an interpreter without torch, several devices, and
    where the peer's loss of the same parameters is another one.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peer needs memory on the same GPU
    if mode not in ("compiled", "eager"):
        raise ValueError(f"mode {mode!r} must be compiled or eager")
    model = config.model
    if not model.block_positions or config.corruption.short_sequence_prob:
        raise ValueError(
            "the peer knows only two tables of positions and one text a row: leave model.block_positions True and "
            "corruption.short_sequence_prob 0"
        )
    if jax.device_count() > 1:
        raise ValueError(f"the peer runs on one device and there are {jax.device_count()}: show one to the process")
    theirs: list[float] = []
    with open_step(config) as step, _peer(step, python or sys.executable, mode) as peer:
        ours = _loss(step)
        exact = step.built.model.config.dtype == "float32" and not (model.hidden_dropout or model.attention_dropout)
        if abs(peer.loss / ours - 1) > (1e-5 if exact else 3e-2):
            raise ValueError(f"the peer's loss of the same parameters and batch is {peer.loss}, here it is {ours}")
        measured = time_against_matmuls(
            step, step.built.model.config.dtype, repeats, lambda: theirs.append(peer.step())
        )
    ratio = statistics.median(theirs) / measured.seconds
    fraction = step.flops / measured.flops
    return {
        "value": ratio,
        "unit": "times as fast as PyTorch, of medians",
        "bound": _WANTED,
        "bound_unit": "times, wanted",
        "fraction_of_bound": ratio / _WANTED,
        "seconds_per_step": measured.seconds,
        "seconds_per_step_of_peer": statistics.median(theirs),
        "raw_tokens_per_second": step.rows.tokens.size / measured.seconds,
        "raw_tokens_per_second_of_peer": step.rows.tokens.size / statistics.median(theirs),
        "fraction_of_products": fraction,
        "fraction_of_products_of_peer": fraction / ratio,
        "loss_of_both": [ours, peer.loss],
        "mode": mode,
        "counting": "the same useful work for both, as in training/flops.py; the peer, too, has logits of targets "
        "only, but runs the last layer whole; its examples have rows of their own",
    }


def _loss(step: OpenStep) -> float:
    """Of the parameters that the peer has, on the batch that it has."""
    loss = jax.jit(functools.partial(apply_loss, step.built.model))
    total, sums = loss(step.state[0].params, step.rows, step.batch)
    return float(total / sums.weight.sum())


@contextlib.contextmanager
def _peer(step: OpenStep, python: str, mode: str) -> Iterator[Peer]:
    shape = {name: getattr(step.built.model.config, name) for name in _SHAPE}
    shape["device"] = "cpu" if jax.default_backend() == "cpu" else "cuda"
    shape["compiled"] = mode == "compiled"
    with tempfile.TemporaryDirectory(prefix="glm_jax-peer-") as folder:
        np.savez(pathlib.Path(folder) / "parameters.npz", **flatten_dict(step.state[0].params, sep="/"))
        np.savez(pathlib.Path(folder) / "batch.npz", **_an_example_a_row(step.batch))
        (pathlib.Path(folder) / "shape.json").write_text(json.dumps(shape))
        command = [python, str(pathlib.Path(__file__).with_name("peer_torch.py")), folder]
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        except OSError as error:
            raise ValueError(f"python {python!r} cannot be run: {error}") from error
        with process:
            try:
                yield Peer(process, float(_answer(process).removeprefix("loss ")))
            finally:
                process.kill()


def _an_example_a_row(batch: Batch) -> dict[str, np.ndarray]:
    """The arrays of the peer's batch: slots as rows, padded to the widest."""
    arrays = {name: [getattr(part, name) for part in batch.unpack()] for name in _BATCH}
    widest = {name: max(a.shape[-1] for a in parts) for name, parts in arrays.items()}

    def padded(name, a):
        return a if a.ndim == 1 else np.pad(a, ((0, 0), (0, widest[name] - a.shape[1])))

    return {name: np.concatenate([padded(name, a) for a in parts]) for name, parts in arrays.items()}


def _answer(process) -> str:
    line = process.stdout.readline()
    if not line:
        raise ValueError(
            f"{process.args[0]} stopped with status {process.wait()}, its last lines stand above. It needs torch: "
            "--python=INTERPRETER names one that has it; and a C++ compiler on CPUs, which --mode=eager does without"
        )
    return line
