"""Damaged, contradictory and malicious checkpoints: an error that names the problem, and nothing is run."""

import json
import os
import pickle
import shutil
import struct
import zipfile

import numpy as np
import pytest

from glm_jax import interop
from glm_jax.interop import FormatError, UnsafeFileError, restricted_pickle, safetensors_file, torch_file
from glm_jax.interop.tensors import of_array
from glm_jax.tokenizers.released import Command
from glm_jax.tokenizers.wordpiece import WordPieceTokenizer
from tests.helpers.paths import GOLDEN

SHARD = "mp_rank_00_model_states.pt"


def state():
    with np.load(GOLDEN / "ckpt_B.npz") as file:
        return dict(file)


def write(folder, tensors, **entries):
    folder.mkdir(exist_ok=True)
    torch_file.write(folder / SHARD, {"module": {k: of_array(v) for k, v in tensors.items()}, **entries})
    return folder


def refuse(folder, match, error=FormatError, **options):
    with pytest.raises(error, match=match):
        interop.from_pretrained(folder, **{"num_heads": 3, **options})


def rewrite(path, value):
    """Replaces a file whose tensors `value` may still read."""
    torch_file.write(path.with_suffix(".new"), value)
    path.with_suffix(".new").rename(path)


@pytest.fixture
def hub(tmp_path):
    folder = tmp_path / "hub"
    shutil.copytree(GOLDEN / "hub_B", folder)
    (folder / "pytorch_model.bin").unlink()
    return folder


@pytest.fixture
def megatron(tmp_path):
    folder = tmp_path / "megatron"
    shutil.copytree(GOLDEN / "megatron_A_MP2", folder)
    return folder


# ---------------------------------------------------------------------- tensors


def test_missing_unexpected_and_misshaped_tensors_are_named(tmp_path):
    tensors = state()
    del tensors["transformer.layers.1.mlp.dense_h_to_4h.bias"]
    tensors["transformer.layers.1.odd.weight"] = np.zeros(3, np.float32)
    tensors["transformer.layers.0.input_layernorm.weight"] = np.zeros(47, np.float32)
    write(tmp_path, tensors)
    refuse(tmp_path, r"1 missing: transformer\.layers\.1\.mlp\.dense_h_to_4h\.bias")
    refuse(tmp_path, r"1 unexpected: transformer\.layers\.1\.odd\.weight \(3,\)")
    refuse(tmp_path, r"transformer\.layers\.0\.input_layernorm\.weight is \(47,\).*expected \(48,\)")


def test_integer_weights_and_nan_are_refused(tmp_path):
    tensors = state()
    key = "transformer.final_layernorm.bias"
    refuse(write(tmp_path / "int", tensors | {key: np.zeros(48, np.int64)}), f"{key} is int64")
    refuse(write(tmp_path / "nan", tensors | {key: np.full(48, np.nan, np.float32)}), f"{key} .*NaN")
    huge = write(tmp_path / "huge", tensors | {key: np.full(48, 1e30, np.float32)})
    refuse(huge, f"{key} .*cannot hold", param_dtype="float16")


def test_transformer_xl_is_refused(tmp_path):
    refuse(write(tmp_path, state() | {"transformer.r_w_bias": np.zeros((3, 16), np.float32)}), "--transformer-xl")


def test_another_model_is_refused(tmp_path):
    refuse(write(tmp_path, {"bert.embeddings.weight": np.zeros((3, 4), np.float32)}), "no checkpoint of GLM")


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_layers", 3), ("hidden_size", 64), ("vocab_size", 128), ("max_sequence_length", 41),
     ("block_position_encoding", False)],
)  # fmt: skip
def test_config_that_contradicts_the_tensors(hub, key, value):
    path = hub / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    refuse(hub, "config of .* says", num_heads=None)


@pytest.mark.parametrize(
    ("text", "match"),
    [("{", "damaged"), ("[]", "no JSON object"), ('{"num_layers": "2"}', "expected a int"), ("[" * 100_000, "damaged"),
     ('{"num_attention_heads": 5}', "multiple of num_heads"), ('{"num_layers": 2, "num_hidden_layers": 3}', "differ"),
     ('{"model_type": "bert"}', "only GLM"), ('{"relative_encoding": true}', "relative positions")],
)  # fmt: skip
def test_bad_config(hub, text, match):
    (hub / "config.json").write_text(text)
    refuse(hub, match, num_heads=None)


def test_contradicting_heads(hub):
    refuse(hub, "says num_heads 3, not 4", num_heads=4)


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("keep", [0, 3, 100, 5000, 0.5, 0.999])
def test_truncated_pytorch_file(tmp_path, keep):
    content = (GOLDEN / "megatron_B/1000" / SHARD).read_bytes()
    (tmp_path / SHARD).write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    refuse(tmp_path, SHARD)


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.999])
def test_truncated_safetensors(hub, keep):
    path = hub / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    refuse(hub, "model.safetensors", num_heads=None)


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"<html>", b"\x80\x02N."])
def test_wrong_format(tmp_path, content):
    (tmp_path / SHARD).write_bytes(content)
    refuse(tmp_path, SHARD)


def test_flipped_bit_is_found_by_the_checksum(tmp_path):
    content = bytearray((GOLDEN / "megatron_B/1000" / SHARD).read_bytes())
    content[100_000] ^= 1
    (tmp_path / SHARD).write_bytes(content)
    refuse(tmp_path, "checksum")


def test_flipped_bit_in_our_own_safetensors(tmp_path, hub):
    interop.export(interop.from_pretrained(hub), tmp_path / "out", "hub")
    path = tmp_path / "out/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    refuse(tmp_path / "out", "checksum", num_heads=None)


def test_heads_in_our_own_exports_are_protected(tmp_path, hub):
    interop.export(interop.from_pretrained(hub), tmp_path / "out", "hub")
    path = tmp_path / "out/config.json"
    path.write_text(path.read_text().replace('"num_attention_heads": 3', '"num_attention_heads": 4'))
    refuse(tmp_path / "out", "num_heads", num_heads=None)


def test_compressed_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / SHARD, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
    refuse(tmp_path, "compressed")


def test_empty_folder_and_two_formats_at_once(tmp_path, hub):
    refuse(tmp_path, "holds no checkpoint")
    shutil.copytree(GOLDEN / "hub_B", tmp_path / "inside" / "hub_B")
    refuse(tmp_path / "inside", "folders inside it do: hub_B; give one of them")
    shutil.copy(GOLDEN / "megatron_B/1000" / SHARD, hub)
    refuse(hub, "megatron and hub at once")


# ---------------------------------------------------------------------- shards and trackers


def test_missing_shards(megatron):
    (megatron / "1000" / SHARD).unlink()
    refuse(megatron, f"lacks {SHARD}", num_heads=4)


def test_last_shard_missing(megatron, tmp_path):
    (megatron / "1000/mp_rank_01_model_states.pt").unlink()
    refuse(megatron, "2 shards .*has 1", num_heads=4)
    shard = torch_file.read(megatron / "1000" / SHARD)
    rewrite(megatron / "1000" / SHARD, {"module": shard["module"]})  # no mp_world_size: the shapes tell
    refuse(megatron, r"dense\.weight is \(64, 32\)", num_heads=4)


def test_shards_of_different_models(megatron, tmp_path):
    path = megatron / "1000/mp_rank_01_model_states.pt"
    value = torch_file.read(path)
    bias = value["module"]["transformer.layers.1.attention.dense.bias"].read()
    value["module"]["transformer.layers.1.attention.dense.bias"] = of_array(bias + 1)
    rewrite(path, value)
    refuse(megatron, r"layers\.1\.attention\.dense\.bias differs between", num_heads=4)
    value = torch_file.read(path)
    del value["module"]["transformer.layers.1.attention.dense.bias"]
    rewrite(path, value)
    refuse(megatron, "do not hold the same tensors", num_heads=4)
    shutil.copy(GOLDEN / "megatron_B/1000" / SHARD, path)
    refuse(megatron, "shards of different models", num_heads=4)


def test_shards_of_different_iterations(megatron):
    path = megatron / "1000/mp_rank_01_model_states.pt"
    rewrite(path, {**torch_file.read(path), "iteration": 2000})
    refuse(megatron, "of iteration 2000", num_heads=4)


@pytest.mark.parametrize("tag", ["../../etc", "/etc", "a/b", "", "..", ".", "a\\b", "x" * 5000])
def test_tracker_that_leaves_the_folder(megatron, tag):
    (megatron / "latest_checkpointed_iteration.txt").write_text(tag)
    refuse(megatron, "points to|does not exist", num_heads=4)


def test_tracker_that_leads_nowhere(megatron):
    (megatron / "latest_checkpointed_iteration.txt").write_text("2000")
    refuse(megatron, "says 2000, but .* does not exist", num_heads=4)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "C:\\x.bin"])
def test_index_that_leaves_the_folder(hub, name):
    (hub / "model.safetensors").rename(hub / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"word_embeddings.weight": name}}
    (hub / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse(hub, "not a file in its own folder", UnsafeFileError, num_heads=None)


def test_index_and_files_disagree(hub):
    (hub / "model.safetensors").rename(hub / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"word_embeddings.weight": "model-00001-of-00001.safetensors"}}
    (hub / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse(hub, "do not agree", num_heads=None)
    (hub / "model.safetensors.index.json").unlink()
    (hub / "model-00001-of-00001.safetensors").rename(hub / "model-a.safetensors")
    shutil.copy(hub / "model-a.safetensors", hub / "model-b.safetensors")
    refuse(hub, "not their index", num_heads=None)


# ---------------------------------------------------------------------- safetensors headers


def header(path, entries, payload=b""):
    text = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    path.write_bytes(struct.pack("<Q", len(text)) + text + payload)


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "cannot lie"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "cannot lie"),
        ({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, "F99"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "damaged"),
        ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "damaged"),
        ({"a": {"dtype": "F32", "shape": [1 << 61, 8], "data_offsets": [0, 4]}}, "cannot lie"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "8 bytes|has"),
        ({"a": 3}, "damaged"),
        ([], "no JSON object"),
        (b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "twice"),
        (b"[" * 100_000, "damaged"),
        (b"\xff\xff\xff", "damaged"),
    ],
)
def test_damaged_safetensors_header(tmp_path, entries, match):
    header(tmp_path / "model.safetensors", entries, b"\0" * 8)
    with pytest.raises(FormatError, match=match):
        safetensors_file.read(tmp_path / "model.safetensors")


# ---------------------------------------------------------------------- pickles


class Payload:
    """Unpickling this with Python's own machine would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def malicious(path, pickled):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/version", "3\n")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_malicious_pickle_runs_nothing(tmp_path, protocol):
    target, folder = tmp_path / "owned", tmp_path / "checkpoint"
    folder.mkdir()
    pickled = pickle.dumps({"module": Payload(target)}, protocol=protocol)
    malicious(folder / SHARD, pickled)
    refuse(folder, "mkdir|not one that checkpoints use", FormatError)
    assert not target.exists()
    pickle.loads(pickled)
    assert target.exists()  # the pickle was a live one


@pytest.mark.parametrize(
    "name", ["os\nsystem", "posix\nsystem", "builtins\neval", "builtins\ngetattr", "subprocess\nPopen", "sys\nexit",
             "importlib\nimport_module", "operator\nattrgetter", "torchvision\nx", "__builtin__\nexec"],
)  # fmt: skip
def test_names_outside_checkpoints_are_refused_and_named(name):
    with pytest.raises(UnsafeFileError, match=name.replace("\n", r"\.")):
        restricted_pickle.loads(b"\x80\x02c" + name.encode() + b"\n(tR.", "file")


def test_objects_of_training_libraries_are_inert(tmp_path):
    """Optimizer and NumPy states stand beside real weights; they are neither imported nor an obstacle."""
    import argparse
    import collections
    import random

    extras = {
        "np_rng_state": np.random.RandomState(0).get_state(),
        "random_rng_state": random.Random(0).getstate(),
        "args": argparse.Namespace(lr=1.0),
        "tracker": collections.defaultdict(list, a=[1]),
        "sets": {1, 2},
        "ordered": collections.OrderedDict(a=1),
    }
    value = restricted_pickle.loads(pickle.dumps(extras, protocol=2), "file")
    assert value["random_rng_state"] == extras["random_rng_state"]
    assert value["ordered"] == {"a": 1}
    assert isinstance(value["args"], restricted_pickle.Inert)
    torchlike = b"\x80\x02}X\x01\x00\x00\x00ac" + b"torch.hub\nload\nX\x01\x00\x00\x00x\x85Rs."
    assert restricted_pickle.loads(torchlike, "file") == {"a": restricted_pickle.Inert("torch.hub.load")}


def test_inert_object_among_the_weights_is_refused(tmp_path):
    pickled = b"\x80\x02}X\x06\x00\x00\x00module}X\x01\x00\x00\x00acargparse\nNamespace\n)Rss."
    malicious(tmp_path / SHARD, pickled)
    refuse(tmp_path, "'a' among the weights is a Inert")


@pytest.mark.parametrize(
    "pickled",
    [b"", b".", b"\x80\x02", b"\x80\x02}(.", b"\x80\x02h\x05.", b"\x80\x02X\xff\xff\xff\xff.", b"\x80\x02}}.",
     b"\x80\x02)R.", b"\x80\x02]](us.", b"\x80\x02}](K\x01u.", b"\x80\x02K\x01K\x02R.", b"\x80\x02(K\x01Q.", b"\xff",
     b"\x80\x02\x8b\xff\xff\xff\x7f.", b"\x80\x02K\x01\x94r\xff\xff\xff\xff0",
     b"\x80\x02}" + b")\x85" * 50_000 + b"K\x01s.",
     b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", b"\x80\x02ccollections\nOrderedDict\nK\x05\x85R."],
)  # fmt: skip
def test_damaged_pickles(pickled):
    with pytest.raises(FormatError):
        restricted_pickle.loads(pickled, "file")


def tensor_pickle(offset, shape, strides, size=4):
    """{"module": {"word_embeddings.weight": a tensor}}, with any geometry."""
    numbers = [pickle.dumps(value, protocol=2)[2:-1] for value in (size, offset, shape, strides)]
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + numbers[0] + b"tQ"
    )
    view = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"".join(numbers[1:]) + b"\x89}tR"
    return b"\x80\x02}X\x06\x00\x00\x00module}X\x01\x00\x00\x00w" + view + b"ss."


@pytest.mark.parametrize(
    ("geometry", "good"),
    [((0, (2, 2), (2, 1)), True), ((0, (2, 2), (1, 2)), True), ((1, (3,), (1,)), True), ((0, (), ()), True),
     ((0, (0, 9), (9, 1)), True), ((1, (2, 2), (2, 1)), False), ((0, (1 << 40,), (0,)), False),
     ((0, (5,), (1,)), False),
     ((-1, (2,), (1,)), False), ((0, (2,), (-1,)), False), ((0, (2, 2), (1,)), False), ((0, (True,), (1,)), False),
     ((0, (2, 2), (2, 1), 5), False)],
)  # fmt: skip
def test_views_stay_inside_their_storage(tmp_path, geometry, good):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", tensor_pickle(*geometry))
        archive.writestr("x/data/0", np.arange(4, dtype=np.float32).tobytes())
    if not good:
        with pytest.raises(FormatError):
            torch_file.read(tmp_path / "x.pt")
        return
    tensor = torch_file.read(tmp_path / "x.pt")["module"]["w"]
    offset, shape, strides = geometry
    expected = np.lib.stride_tricks.as_strided(np.arange(4, dtype=np.float32)[offset:], shape, [4 * s for s in strides])
    np.testing.assert_array_equal(tensor.read(), expected)


def test_checksum_of_a_shared_storage(tmp_path):
    """DeepSpeed saves all parameters as views of one storage; a damage anywhere in it shows at the first view."""
    payload = np.arange(4, dtype=np.float32).tobytes()
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", tensor_pickle(0, (2,), (1,)))
        archive.writestr("x/data/0", payload)
    content = (tmp_path / "x.pt").read_bytes()
    at = content.index(payload) + 13  # in the half that the view does not touch
    (tmp_path / "x.pt").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(FormatError, match="checksum"):
        torch_file.read(tmp_path / "x.pt")["module"]["w"].read()


# ---------------------------------------------------------------------- tokenizers


def tiny_wordpiece(pieces):
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [f"w{i}" for i in range(pieces - 7)]
    commands = [Command("pad", "[PAD]", 0), Command("eos", "[PAD]", 0), Command("ENC", "[CLS]", 2),
                Command("MASK", "[MASK]", 4), Command("sop", "<|startofpiece|>", len(names)),
                Command("eop", "<|endofpiece|>", len(names) + 1)]  # fmt: skip
    return WordPieceTokenizer("\n".join(names).encode(), commands, 16)


@pytest.mark.parametrize(("pieces", "fits"), [(112, True), (100, True), (97, True), (96, False), (113, False)])
def test_tokenizer_must_fit_the_vocabulary(pieces, fits):
    """hub_B has 112 rows, the tokenizers here pad to a multiple of 16."""
    tokenizer = tiny_wordpiece(pieces)
    if fits:
        assert interop.from_pretrained(GOLDEN / "hub_B", tokenizer=tokenizer).tokenizer is tokenizer
    else:
        refuse(
            GOLDEN / "hub_B", f"the tokenizer has {pieces} tokens .*the model 112", num_heads=None, tokenizer=tokenizer
        )


@pytest.mark.parametrize(
    ("files", "match"),
    [({"vocab.txt": b"a\nb\n"}, "no \\[PAD\\]"), ({"vocab.txt": b"\xff\xfe"}, "not UTF-8"),
     ({"cog-pretrain.model": b"junk"}, "damaged"), ({"vocab.json": b"{", "merges.txt": b""}, "no JSON"),
     ({"vocab.json": b'{"a": 7}', "merges.txt": b""}, "not 0 to 0"), ({"merges.txt": b"x"}, "vocab.json"),
     ({"tokenizer_config.json": b"{"}, "damaged"), ({"added_tokens.json": b"[]"}, "no JSON object")],
)  # fmt: skip
def test_damaged_tokenizer_files(hub, files, match):
    for name, content in files.items():
        (hub / name).write_bytes(content)
    refuse(hub, match, num_heads=None)


def test_wrong_dtype_words(hub):
    for options in ({"dtype": "int8"}, {"param_dtype": "float64"}):
        with pytest.raises(ValueError, match="is not one of float32"):
            interop.from_pretrained(hub, **options)
