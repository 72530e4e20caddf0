"""The step beside the same model in PyTorch; a stand-in computes the peer's loss where there is no torch."""

import sys

import pytest

from tests.helpers import tiny_run
from tests.helpers.benchmark_keys import KEYS
from tests.helpers.paths import ROOT
from tools import peer

pytestmark = pytest.mark.thorough

# What stands in for an interpreter with torch: reads what the peer gets, and computes its loss here.
STAND_IN = """#!{python}
import json, pathlib, sys
sys.path.insert(0, {root!r})
import flax.traverse_util, jax, jax.numpy as jnp, numpy as np
from glm_jax.model.transformer import GLM
from glm_jax.model.config import GLMConfig
folder = pathlib.Path(sys.argv[2])
shape, batch = json.loads((folder / "shape.json").read_text()), np.load(folder / "batch.npz")
assert (shape.pop("device"), shape.pop("compiled")) == ("cpu", {compiled})
params = flax.traverse_util.unflatten_dict(dict(np.load(folder / "parameters.npz")), sep="/")
vocab, positions = (params[f"{{name}}_embeddings"]["embedding"].shape[0] for name in ("word", "position"))
model = GLM(GLMConfig(vocab_size=vocab, max_position_embeddings=positions - 1, **shape))
inputs = [batch[n] for n in "tokens position_ids block_position_ids prefix_lengths target_index".split()]
found = jax.nn.log_softmax(model.apply({{"params": params}}, *inputs))
losses = -jnp.take_along_axis(found, batch["target_ids"][..., None], axis=-1)[..., 0] * batch["target_weights"]
print("loss", {factor} * float(losses.sum() / batch["target_weights"].sum()), flush=True)
for line in sys.stdin:
    print(0.25, flush=True)
"""


def stand_in(folder, factor=1.0, compiled=True):
    path = folder / "python"
    path.write_text(STAND_IN.format(python=sys.executable, root=str(ROOT), factor=factor, compiled=compiled))
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("changes", [{}, {"corruption__document": 1.0, "corruption__pack_objectives": True}])
@pytest.mark.thorough
def test_peer_benchmark_holds_both_steps_against_each_other(tmp_path, changes):
    config = tiny_run.config(tmp_path, model__dtype="float32", **changes)
    result = peer.run(config, repeats=3, python=stand_in(tmp_path, compiled=False), mode="eager")
    assert result.keys() >= KEYS
    assert result["seconds_per_step_of_peer"] == 0.25
    assert result["value"] == pytest.approx(0.25 / result["seconds_per_step"])
    ours, theirs = result["loss_of_both"]
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_peer_of_another_loss_is_refused(tmp_path):
    config = tiny_run.config(tmp_path, model__dtype="float32")
    with pytest.raises(ValueError, match="the peer's loss of the same parameters and batch is"):
        peer.run(config, python=stand_in(tmp_path, factor=1.1))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"mode": "fast"}, "mode 'fast' must be compiled or eager"),
        ({}, {"python": "/no/such/python"}, "'/no/such/python' cannot be run"),
        ({}, {"python": "/bin/false"}, "/bin/false stopped with status 1.*--python=INTERPRETER"),
        ({"corruption__short_sequence_prob": 0.5}, {}, "short_sequence_prob 0"),
    ],
)
def test_a_peer_that_cannot_run_says_why(tmp_path, changes, options, message):
    with pytest.raises(ValueError, match=message):
        peer.run(tiny_run.config(tmp_path, **changes), **options)


@pytest.mark.parametrize("gelu", ["tanh", "exact"])
def test_the_peer_in_torch_has_the_same_loss(tmp_path, gelu):
    pytest.importorskip("torch")
    config = tiny_run.config(tmp_path, model__dtype="float32", model__gelu=gelu)
    assert peer.run(config, repeats=1, mode="eager")["value"] > 0
