"""LoRA in peft's layout: read back here, and loaded by peft itself in an environment of its own.

The second needs a Python with torch and peft, named by GLM_JAX_PEFT_PYTHON:
  python3 -m venv peft && peft/bin/pip install torch peft
  GLM_JAX_PEFT_PYTHON=peft/bin/python python -m pytest tests/interop/test_peft.py
"""

import json
import logging
import os
import subprocess

import jax
import numpy as np
import pytest

from glm_jax import methods
from glm_jax.interop import FormatError, peft
from glm_jax.interop.adapter import fingerprint, open_adapter, write_adapter
from glm_jax.methods.base import merge_trees
from glm_jax.methods.lora import product
from tests.methods.test_methods import CONFIG, base, own

# A module with the names of the hub's GLM, whose kernels are the identity of what is added: peft's effective kernels
# minus the base are its products.
LOAD = """
import json, sys
import numpy as np, torch
from peft import PeftModel

folder, out, layers, width = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
Linear, Module = torch.nn.Linear, torch.nn.Module

class Attention(Module):
    def __init__(self):
        super().__init__()
        self.query_key_value, self.dense = Linear(width, 3 * width), Linear(width, width)

class MLP(Module):
    def __init__(self):
        super().__init__()
        self.dense_h_to_4h, self.dense_4h_to_h = Linear(width, 4 * width), Linear(4 * width, width)

class Layer(Module):
    def __init__(self):
        super().__init__()
        self.attention, self.mlp = Attention(), MLP()

class Transformer(Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer() for _ in range(layers))

class GLM(Module):
    def __init__(self):
        super().__init__()
        self.transformer = Transformer()
    def forward(self, x):
        return x

torch.manual_seed(0)
model = GLM()
before = {name: module.weight.detach().clone() for name, module in model.named_modules() if isinstance(module, Linear)}
merged = PeftModel.from_pretrained(model, folder).merge_and_unload()
after = {name: module.weight.detach() for name, module in merged.named_modules() if isinstance(module, Linear)}
np.savez(out, **{name: (after[name] - before[name]).numpy() for name in before})
"""


def adapter(tmp_path, **settings):
    method = methods.LoRA(rank=3, alpha=6.0, **settings)
    trained, _ = method.split(method.add(own(base()), CONFIG, jax.random.key(2)))
    keys = iter(jax.random.split(jax.random.key(3), 100))

    def fill(path, leaf):
        if path[-1].key != "lora_b":
            return leaf
        chosen = np.array([method.layers is None or i in method.layers for i in range(CONFIG.num_layers)])
        values = 0.3 * jax.random.normal(next(keys), leaf.shape)
        return values * chosen.reshape(-1, *(1,) * (leaf.ndim - 1))

    trained = jax.tree_util.tree_map_with_path(fill, trained)
    peft.write(tmp_path / "adapter", method, trained, CONFIG, "a model")
    return method, trained


def products(method, trained):
    """Module's name in a layer -> scale · A · B [layers in out]."""
    with_scales = merge_trees(method.constants(trained), trained)["layers"]
    result = {}
    for group in with_scales:
        for name, module in with_scales[group].items():
            inputs = int(np.prod(module["lora_a"].shape[1:])) // module["lora_a"].shape[-1]
            if module["lora_b"].ndim == 5 and module["lora_a"].ndim == 4:  # a pair for each of query, key and value
                inputs //= 3
            result[f"{group}.{name}"] = np.asarray(product(module)).reshape(CONFIG.num_layers, inputs, -1)
    return result


SETTINGS = [
    {}, {"separate_query_key_value": True}, {"layers": (1,), "targets": ("query_key_value", "dense_4h_to_h")},
    {"rank_stabilized": True, "separate_query_key_value": True},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS)
def test_what_is_written_is_read_again(tmp_path, settings):
    method, trained = adapter(tmp_path, **settings)
    again, read = peft.read(tmp_path / "adapter", CONFIG)
    ours, theirs = products(method, trained), products(again, read)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-6)
    # Also as an adapter of our own, though its modules had different ranks.
    identity = {"name": "a model", "fingerprint": fingerprint(base())}
    write_adapter(tmp_path / "own", again, read, CONFIG, identity)
    opened, _ = open_adapter(tmp_path / "own", base(), CONFIG, "a model")
    for name, expected in ours.items():
        group, module = name.split(".")
        np.testing.assert_allclose(
            np.asarray(product(opened["layers"][group][module])).reshape(expected.shape), expected, atol=1e-6
        )


@pytest.mark.skipif("GLM_JAX_PEFT_PYTHON" not in os.environ, reason="GLM_JAX_PEFT_PYTHON names no Python with peft")
@pytest.mark.parametrize("settings", SETTINGS)
def test_peft_loads_it(tmp_path, settings):
    method, trained = adapter(tmp_path, **settings)
    out = tmp_path / "deltas.npz"
    command = [
        os.environ["GLM_JAX_PEFT_PYTHON"], "-c", LOAD, str(tmp_path / "adapter"), str(out), str(CONFIG.num_layers),
        str(CONFIG.hidden_size),
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = products(method, trained)
    with np.load(out) as deltas:
        for key in deltas:
            layer, name = key.removeprefix("transformer.layers.").split(".", 1)
            ours = expected[name][int(layer)].T if name in expected else np.zeros_like(deltas[key])
            np.testing.assert_allclose(deltas[key], ours, atol=1e-6, err_msg=key)


def test_keys_that_are_not_known_are_listed(tmp_path, caplog):
    adapter(tmp_path)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"frobnicate": 3, "another": None}))
    with caplog.at_level(logging.WARNING, logger="glm_jax"):
        peft.read(tmp_path / "adapter", CONFIG)
    assert "keys that are not known, and not used: another, frobnicate" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "peft_type 'PREFIX_TUNING'; of peft's adapters only LORA can be read"),
        ({"use_dora": True}, "use_dora = True is not implemented"),
        ({"bias": "all"}, "bias = 'all' is not implemented"),
        ({"r": None}, "r = None is no rank"),
        ({"r": 5}, r"lora_A\.weight is \(3, 32\), expected \(5, 32\)"),
        ({"rank_pattern": {"query": 3}}, "rank_pattern has 'query', which is the name of no module here"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, changes, message):
    adapter(tmp_path)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(FormatError, match=message):
        peft.read(tmp_path / "adapter", CONFIG)
