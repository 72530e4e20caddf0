"""The original's and the hub's checkpoints: the same weights, the same logits, whatever the layout."""

import json
import pickle
import shutil
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax import interop
from glm_jax.distributed import sharding
from glm_jax.interop import FormatError, param_mapping, safetensors_file, torch_file
from glm_jax.interop.tensors import of_array
from glm_jax.model import classifier_head, soft_prompt
from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import GLM, init_params
from tests.helpers.compiler_flags import fake_devices
from tests.helpers.golden_params import from_state_dict
from tests.helpers.paths import GOLDEN, ROOT

HEADS = {"A": 4, "B": 3}
FOLDERS = [("megatron_A", "A"), ("megatron_A_MP2", "A"), ("megatron_B", "B"), ("hub_A", "A"), ("hub_B", "B")]


def heads_for(folder, name):
    return None if folder.startswith("hub") else HEADS[name]


def arrays(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def forward(loaded, data, **options):
    tokens, positions, sep = (jnp.asarray(data[key], jnp.int32) for key in ("input_ids", "position_ids", "sep"))
    return loaded.model.apply({"params": loaded.params}, tokens, positions[:, 0], positions[:, 1], sep, **options)


def assert_same(params, expected):
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize(("folder", "name"), FOLDERS)
def test_weights_and_logits(folder, name, fidelity):
    loaded = interop.from_pretrained(GOLDEN / folder, num_heads=heads_for(folder, name))
    expected = from_state_dict(arrays(f"ckpt_{name}"), HEADS[name])
    fidelity.equal(folder, "all weights", loaded.params, expected)
    fidelity.equal(f"ckpt_{name}.npz", "weights of the same model in a checkpoint", loaded.params, expected)
    data = arrays(f"forward_{name}")
    expected = data["logits"]
    if folder.startswith("hub"):
        assert loaded.model.config.gelu == "exact"
        expected = arrays(f"hub_forward_{name}")["logits_hub_erf"]
    logits = forward(loaded, data)
    if folder.startswith("hub"):
        fidelity.close(f"hub_forward_{name}.npz", "logits with the hub's GELU", logits, expected, 1e-5)
    fidelity.close(folder, "logits of its model", logits, expected, 1e-5)
    assert len(loaded.report.tensors) == len(arrays(f"ckpt_{name}"))
    for key in loaded.report.tensors:
        assert key in str(loaded.report)


def test_hub_weights_with_the_originals_gelu():
    loaded = interop.from_pretrained(GOLDEN / "hub_A", gelu="tanh")
    data = arrays("forward_A")
    np.testing.assert_allclose(forward(loaded, data), data["logits"], atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_pytorch_files_of_the_hub(tmp_path, name):
    for file in ("config.json", "pytorch_model.bin"):
        shutil.copy(GOLDEN / f"hub_{name}" / file, tmp_path)
    loaded = interop.from_pretrained(tmp_path)
    assert_same(loaded.params, from_state_dict(arrays(f"ckpt_{name}"), HEADS[name]))
    assert all(tensor.checksum for tensor in loaded.report.tensors.values())


def write_shard(folder, state, *, wrap=True, prefix="", **entries):
    tensors = {prefix + key: of_array(array) for key, array in state.items()}
    torch_file.write(folder / "mp_rank_00_model_states.pt", {"module": tensors, **entries} if wrap else tensors)


@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "model."])
@pytest.mark.parametrize("wrap", [True, False])
def test_nesting_and_prefixes(tmp_path, wrap, prefix):
    """A bare folder of a tag, with and without the wrappers that the original's trainer leaves in the names."""
    state = arrays("ckpt_B")
    write_shard(tmp_path, state, wrap=wrap, prefix=prefix)
    loaded = interop.from_pretrained(tmp_path, num_heads=3)
    assert_same(loaded.params, from_state_dict(state, 3))


def test_half_precision_is_widened_exactly(tmp_path):
    state = {key: array.astype(np.float16) for key, array in arrays("ckpt_B").items()}
    write_shard(tmp_path, state)
    loaded = interop.from_pretrained(tmp_path, dtype="bfloat16", num_heads=3)
    assert loaded.dtype == "float16"
    assert loaded.model.config.dtype == "bfloat16"
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {np.dtype(np.float32)}
    assert_same(loaded.params, from_state_dict({key: a.astype(np.float32) for key, a in state.items()}, 3))


def test_parameters_in_another_dtype(tmp_path):
    loaded = interop.from_pretrained(GOLDEN / "hub_B", param_dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded.params)} == {"bfloat16"}


def test_tied_head_is_dropped_if_it_is_the_word_embeddings(tmp_path):
    state = arrays("ckpt_B")
    state["lm_head.weight"] = state["word_embeddings.weight"]
    write_shard(tmp_path, state)
    assert any("lm_head" in note for note in interop.from_pretrained(tmp_path, num_heads=3).report.notes)
    write_shard(tmp_path, state | {"lm_head.weight": state["word_embeddings.weight"] + 1})
    with pytest.raises(FormatError, match=r"lm_head\.weight"):
        interop.from_pretrained(tmp_path, num_heads=3)


def test_the_result_unpacks_to_model_parameters_tokenizer():
    run = interop.from_pretrained(GOLDEN / "hub_B", dtype="bfloat16")
    model, params, tokenizer = run
    assert (model, params) == (run.model, run.params)
    assert isinstance(model, GLM)
    assert model.config.dtype == "bfloat16"
    assert params["word_embeddings"]["embedding"].shape == (112, 48)
    assert tokenizer is None


def test_heads_of_published_sizes_are_known_and_others_asked_for():
    with pytest.raises(FormatError, match="num_heads"):
        interop.from_pretrained(GOLDEN / "megatron_A")
    large = GLMConfig.named("large")
    names = {entry.key: of_array(np.broadcast_to(np.float32(0), entry.shape)) for entry in param_mapping.entries(large)}
    from glm_jax.interop.source import Source, config_of

    assert config_of(Source("megatron", GOLDEN, names, {}), dtype="bfloat16") == large


@pytest.mark.parametrize("size", ["base", "large-chinese", "515m", "10b"])
def test_every_parameter_has_a_tensor(size):
    config = GLMConfig.named(size)
    shapes = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    ours = {
        tuple(k.key for k in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(sharding.unbox(shapes))
    }
    mapped = {
        path: ((len(found),) if found[0].layer is not None else ()) + found[0].leaf_shape
        for path, found in param_mapping.leaves(config).items()
    }
    assert mapped == ours


@pytest.mark.parametrize("kind", ["none", "mlp", "lstm"])
def test_soft_prompts(tmp_path, kind, fidelity):
    data = arrays(f"prompt_{kind}")
    write_shard(tmp_path, {key[6:]: array for key, array in data.items() if key.startswith("param/")})
    loaded = interop.from_pretrained(tmp_path, num_heads=4)
    vectors = soft_prompt.prompt_vectors(loaded.params["prompt"])
    fidelity.close(f"prompt_{kind}.npz", "vectors of the prompt", vectors, data["prompt_embeds"][0], 1e-5)
    tokens, positions = (jnp.asarray(data[key], jnp.int32) for key in ("input_ids", "prompt_pos"))
    embeddings = soft_prompt.soft_prompt_embeddings(loaded.model, loaded.params, tokens, vectors, positions)
    logits = forward(loaded, data, input_embeddings=embeddings)
    fidelity.close(f"prompt_{kind}.npz", "logits", logits, data["logits"], 1e-5)
    assert np.abs(forward(loaded, data) - data["logits"]).max() > 1e-2  # without the prompt


def seqcls_state(names):
    data = arrays("seqcls_cls")
    head = {names[0]: data["pool_w"], names[1]: data["pool_b"], names[2]: data["head_w"], names[3]: data["head_b"]}
    return {f"{names[4]}{key}": array for key, array in arrays("ckpt_A").items()} | head


@pytest.mark.parametrize("pool", classifier_head.POOLS)
def test_classification_head(tmp_path, pool, fidelity):
    data = arrays(f"seqcls_{pool}")
    names = ("pool_layer.weight", "pool_layer.bias", "multichoice_head.weight", "multichoice_head.bias", "model.")
    write_shard(tmp_path, seqcls_state(names))
    loaded = interop.from_pretrained(tmp_path, num_heads=4)
    tokens, positions, sep = (jnp.asarray(data[key], jnp.int32) for key in ("input_ids", "position_ids", "sep"))
    hidden = loaded.model.apply({"params": loaded.params}, tokens, positions[:, 0], positions[:, 1], sep, head=False)
    scores = classifier_head.classifier_logits(loaded.params["classifier"], hidden, sep, pool)
    fidelity.close(f"seqcls_{pool}.npz", "scores of the classes", scores, data["logits"], 1e-5)
    assert "classifier" not in loaded.model_params


def test_classification_head_with_the_hubs_names(tmp_path):
    names = ("dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias", "glm.")
    state = seqcls_state(names)
    safetensors_file.write(tmp_path / "model.safetensors", {key: of_array(array) for key, array in state.items()})
    shutil.copy(GOLDEN / "hub_A/config.json", tmp_path)
    head = interop.from_pretrained(tmp_path).params["classifier"]
    np.testing.assert_array_equal(head["output"]["kernel"], arrays("seqcls_cls")["head_w"].T)
    del state["dense.bias"]
    safetensors_file.write(tmp_path / "model.safetensors", {key: of_array(array) for key, array in state.items()})
    with pytest.raises(FormatError, match=r"classification head.*dense\.bias is missing"):
        interop.from_pretrained(tmp_path)


def legacy_file(path, value, state):
    """What torch.save wrote before version 1.6; the same pickle machine, four pickles, storages behind them."""
    with path.open("wb") as file:
        for item in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
            pickle.dump(item, file, protocol=2)
        modern = path.with_suffix(".zip")
        torch_file.write(modern, value)
        import zipfile

        with zipfile.ZipFile(modern) as archive:
            file.write(archive.read(f"{path.stem}/data.pkl"))
        modern.unlink()
        pickle.dump([str(i) for i in range(len(state))], file, protocol=2)
        for array in state.values():
            file.write(struct.pack("<q", array.size) + array.tobytes())


def test_legacy_files(tmp_path):
    state, path = arrays("ckpt_B"), tmp_path / "mp_rank_00_model_states.pt"
    legacy_file(path, {"module": {key: of_array(array) for key, array in state.items()}}, state)
    loaded = interop.from_pretrained(tmp_path, num_heads=3)
    assert_same(loaded.params, from_state_dict(state, 3))
    assert not any(tensor.checksum for tensor in loaded.report.tensors.values())
    content = path.read_bytes()
    for damaged in (content[:-1], content + b"\0", content[: len(content) // 2], content[:40]):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match="mp_rank_00"):
            interop.from_pretrained(tmp_path, num_heads=3)


def test_sharded_hub_folder(tmp_path):
    loaded = interop.from_pretrained(GOLDEN / "hub_B")
    interop.export(loaded, tmp_path / "out", "hub", shard_bytes=60_000)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    again = interop.from_pretrained(tmp_path / "out")
    assert_same(again.params, loaded.params)
    victim = next(iter(index["weight_map"].values()))
    (tmp_path / "out" / victim).unlink()
    with pytest.raises(FormatError, match=f"{victim} is missing"):
        interop.from_pretrained(tmp_path / "out")


PLACEMENT = """
import sys, jax, numpy as np
sys.path.insert(0, {tests!r})
from tests.helpers.golden_params import from_state_dict
from glm_jax import interop
from glm_jax.distributed.mesh import make_mesh
mesh = make_mesh(dict(data=1, fsdp=2, tensor=4))
loaded = interop.from_pretrained({folder!r}, mesh=mesh, num_heads=4)
expected = from_state_dict(dict(np.load({arrays!r})), 4)
jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)
kernel = loaded.params["layers"]["attention"]["query_key_value"]["kernel"]
assert kernel.addressable_shards[0].data.shape == (3, 32, 3, 1, 16), kernel.sharding
print("placed")
"""


def test_tensors_land_on_the_shards_of_a_mesh():
    code = PLACEMENT.format(tests=str(ROOT), folder=str(GOLDEN / "megatron_A_MP2"), arrays=str(GOLDEN / "ckpt_A.npz"))
    env = fake_devices(8)
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=GOLDEN.parents[1], check=False
    )
    assert done.stdout.strip() == "placed", done.stderr[-2000:]


def test_hub_ids_need_the_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FormatError, match="install huggingface_hub"):
        interop.from_pretrained("THUDM/glm-10b")
    with pytest.raises(FormatError, match="does not exist"):
        interop.from_pretrained("/no/such/folder")


def test_hub_ids_are_fetched_with_the_client(monkeypatch):
    client = type(sys)("huggingface_hub")
    client.snapshot_download = lambda name, allow_patterns: str(GOLDEN / name.split("/")[1])
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    assert interop.from_pretrained("THUDM/hub_B").model.config.num_layers == 2


def test_what_the_hub_does_not_give_is_named(monkeypatch):
    def download(name, allow_patterns):
        raise ConnectionError("check your internet connection")

    client = type(sys)("huggingface_hub")
    client.snapshot_download = download
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    with pytest.raises(FormatError, match=r"runs/nope does not exist here, and could not be .*: ConnectionError"):
        interop.from_pretrained("runs/nope")


@pytest.mark.parametrize("modern", [True, False])
def test_files_that_pytorch_writes(tmp_path, modern):
    """Parameters, views of one storage, transposed views, optimizer states, in today's and the old format."""
    torch = pytest.importorskip("torch")
    import collections

    flat = torch.arange(24, dtype=torch.float16)
    module = torch.nn.Linear(3, 2)
    value = {
        "module": collections.OrderedDict(
            view=flat[4:10].view(2, 3), transposed=flat.view(4, 6).T, parameter=module.weight, whole=flat,
            bfloat16=torch.ones(3, dtype=torch.bfloat16), scalar=torch.tensor(3.0), empty=torch.zeros(0, 4),
        ),
        "state_dict": module.state_dict(),
        "optimizer": torch.optim.Adam(module.parameters()).state_dict(),
        "torch_rng_state": torch.get_rng_state(),
        "np_rng_state": np.random.RandomState(0).get_state(),
        "dtype": torch.float16,
        "size": flat.shape,
    }  # fmt: skip
    torch.save(value, tmp_path / "x.pt", _use_new_zipfile_serialization=modern)
    found = torch_file.read(tmp_path / "x.pt")
    for key, tensor in [*value["module"].items(), *value["state_dict"].items()]:
        read = (found["module"] | found["state_dict"])[key].read()
        assert read.shape == tuple(tensor.shape)
        assert str(read.dtype) == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(read.astype(np.float32), tensor.detach().float().numpy())
