"""Out again: the same keys, shapes, dtypes and values as came in, cut into any number of shards."""

import dataclasses
import json
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest

from glm_jax import interop
from glm_jax.cli import convert
from glm_jax.interop import hub_tokenizer, model_parallel, param_mapping, safetensors_file, torch_file
from glm_jax.interop.tensors import of_array
from glm_jax.model.config import GLMConfig
from glm_jax.tokenizers import released
from glm_jax.tokenizers.byte_bpe import ByteBPETokenizer, roberta_commands
from glm_jax.tokenizers.released import Command
from glm_jax.tokenizers.wordpiece import WordPieceTokenizer, bert_commands
from tests.helpers.paths import GOLDEN

SOURCES = {"megatron_A": 4, "megatron_A_MP2": 4, "megatron_B": 3, "hub_A": None, "hub_B": None}


def read_module(path):
    value = torch_file.read(path)
    return {key: tensor.read() for key, tensor in value.pop("module").items()}, value


def assert_same_arrays(found, expected):
    assert list(found) == list(expected)
    for key, array in expected.items():
        assert found[key].dtype == array.dtype, key
        np.testing.assert_array_equal(found[key], array, strict=True)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("to", ["megatron", "hub", "glm_jax"])
def test_import_export_import_is_bit_identical(tmp_path, source, to):
    first = interop.from_pretrained(GOLDEN / source, num_heads=SOURCES[source])
    interop.export(first, tmp_path / "out", to)
    again = interop.from_pretrained(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again.params, first.params)
    assert again.model.config == first.model.config
    assert again.dtype == first.dtype


@pytest.mark.parametrize("source", ["megatron_A", "megatron_A_MP2", "megatron_B"])
def test_export_equals_the_original_files(tmp_path, source, fidelity):
    """Through a run folder, too: keys, order, shapes, dtypes, values, and the entries beside the weights."""
    files = sorted((GOLDEN / source / "1000").iterdir())
    loaded = interop.from_pretrained(GOLDEN / source, num_heads=SOURCES[source])
    interop.export(loaded, tmp_path / "run", "glm_jax")
    interop.export(interop.from_pretrained(tmp_path / "run"), tmp_path / "out", "megatron", model_parallel=len(files))
    assert sorted(path.name for path in (tmp_path / "out/1000").iterdir()) == [path.name for path in files]
    for path in files:
        weights, entries = read_module(tmp_path / "out/1000" / path.name)
        expected, expected_entries = read_module(path)
        assert_same_arrays(weights, expected)
        assert entries == expected_entries
    for name in ("latest", "latest_checkpointed_iteration.txt"):
        assert (tmp_path / "out" / name).read_text() == (GOLDEN / source / name).read_text()
    fidelity.compared(source, "what is exported again: names, order, shapes, weights and other entries")


@pytest.mark.parametrize("name", ["A", "B"])
def test_hub_export_equals_the_hub_files(tmp_path, name, fidelity):
    interop.export(interop.from_pretrained(GOLDEN / f"hub_{name}"), tmp_path / "out", "hub")
    found, _ = safetensors_file.read(tmp_path / "out/model.safetensors")
    expected, _ = safetensors_file.read(GOLDEN / f"hub_{name}/model.safetensors")
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        np.testing.assert_array_equal(found[key].read(), tensor.read(), strict=True)
    ours, theirs = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", GOLDEN / f"hub_{name}")
    )
    theirs.pop("auto_map")
    assert {key: ours.get(key) for key in theirs} == theirs | {"_name_or_path": None, "transformers_version": None}
    fidelity.compared(f"hub_{name}", "what is exported again: names, shapes, weights and config")


def test_shards_agree(tmp_path):
    """Model parallel 1, 2 and 4 are the same model."""
    loaded = interop.from_pretrained(GOLDEN / "megatron_A", num_heads=4)
    for count in (1, 2, 4):
        interop.export(loaded, tmp_path / str(count), "megatron", model_parallel=count)
        assert len(list((tmp_path / str(count) / "1000").iterdir())) == count
        again = interop.from_pretrained(tmp_path / str(count))
        jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_cut_and_join_are_inverse(count):
    config = GLMConfig(vocab_size=64, num_layers=1, hidden_size=32, num_heads=8, max_position_embeddings=7)
    rules = {}
    for entry in param_mapping.entries(config):
        split = model_parallel.split_of(entry.key)
        rules[entry.key.split(".", 3)[-1]] = split
        array = np.arange(np.prod(entry.shape)).reshape(entry.shape)
        parts = [model_parallel.cut(array, split, i, count) for i in range(count)]
        shape = model_parallel.cut_shape(entry.shape, split, count, entry.key)
        assert {part.shape for part in parts} == {shape}
        assert model_parallel.joined_shape(shape, split, count) == entry.shape
        joined = model_parallel.join(parts, split) if split else parts[0]
        np.testing.assert_array_equal(joined, array)
    assert rules["attention.query_key_value.bias"] == model_parallel.THIRDS
    assert rules["attention.dense.weight"] == rules["mlp.dense_4h_to_h.weight"] == model_parallel.COLUMNS
    assert rules["attention.dense.bias"] is rules["mlp.dense_4h_to_h.bias"] is None


def test_queries_keys_and_values_of_a_shard_are_its_heads():
    rows = np.arange(24)[:, None] * np.ones((1, 2), int)
    assert model_parallel.cut(rows, model_parallel.THIRDS, 1, 2)[:, 0].tolist() == [
        4,
        5,
        6,
        7,
        12,
        13,
        14,
        15,
        20,
        21,
        22,
        23,
    ]


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("to", ["megatron", "hub", "glm_jax"])
def test_half_precision_survives(tmp_path, to, dtype):
    """What came in as float16 goes out as float16, although it is float32 in between."""
    loaded = interop.from_pretrained(GOLDEN / "hub_B")
    interop.export(loaded, tmp_path / "half", "megatron", dtype=dtype)
    half = interop.from_pretrained(tmp_path / "half")
    assert half.dtype == dtype
    interop.export(half, tmp_path / "out", to)
    again = interop.from_pretrained(tmp_path / "out")
    assert again.dtype == dtype
    jax.tree.map(np.testing.assert_array_equal, again.params, half.params)
    interop.export(again, tmp_path / "back", "megatron")
    for name in ("half", "back"):
        path = next((tmp_path / name).glob("*/mp_rank_00_model_states.pt"))
        weights, _ = read_module(path)
        if name == "half":
            expected = weights
    assert_same_arrays(weights, expected)


def with_extras(tmp_path):
    with np.load(GOLDEN / "prompt_mlp.npz") as file:
        state = {"model." + key[6:]: of_array(file[key]) for key in file if key.startswith("param/")}
    rng = np.random.default_rng(0)
    for key, shape in (("pool_layer", (64, 64)), ("multichoice_head", (3, 64))):
        state[f"{key}.weight"] = of_array(rng.normal(size=shape).astype(np.float32))
        state[f"{key}.bias"] = of_array(rng.normal(size=shape[:1]).astype(np.float32))
    (tmp_path / "source").mkdir()
    torch_file.write(tmp_path / "source/mp_rank_00_model_states.pt", {"module": state})
    return interop.from_pretrained(tmp_path / "source", num_heads=4)


@pytest.mark.parametrize(("to", "shards"), [("megatron", 1), ("megatron", 2), ("hub", 1), ("glm_jax", 1)])
def test_soft_prompt_and_head_go_along(tmp_path, to, shards):
    loaded = with_extras(tmp_path)
    assert {"prompt", "classifier"} <= set(loaded.params)
    interop.export(loaded, tmp_path / "out", to, model_parallel=shards)
    again = interop.from_pretrained(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)
    if to == "hub":
        names = set(safetensors_file.read(tmp_path / "out/model.safetensors")[0])
        assert {"dense.weight", "out_proj.bias", "glm.word_embeddings.weight"} <= names
        config = json.loads((tmp_path / "out/config.json").read_text())
        assert (config["spell_func"], config["spell_length"]) == ("mlp", 3)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"to": "onnx"}, "unknown format"), ({"dtype": "int8"}, "is not one of"),
     ({"model_parallel": 3}, "divisor of the 4"),
     ({"to": "hub", "model_parallel": 2}, "only the original"), ({"metadata": {"iteration": "../x"}}, "whole number"),
     ({"metadata": {"x": object()}}, "cannot be written")],
)  # fmt: skip
def test_bad_exports_leave_nothing(tmp_path, options, match):
    loaded = interop.from_pretrained(GOLDEN / "hub_A")
    options = {"to": "megatron", **options}
    loaded = dataclasses.replace(loaded, metadata=options.pop("metadata", {}))
    with pytest.raises(ValueError, match=match):
        interop.export(loaded, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_exports_never_overwrite(tmp_path):
    loaded = interop.from_pretrained(GOLDEN / "hub_B")
    (tmp_path / "note").touch()
    with pytest.raises(ValueError, match="exists"):
        interop.export(loaded, tmp_path, "hub")
    with pytest.raises(ValueError, match=r"word_embeddings/embedding is missing, expected"):
        interop.export(interop.Pretrained(loaded.model, {}), tmp_path / "out", "hub")
    params = jax.tree.map(lambda leaf: leaf * 1e6, loaded.params)
    with pytest.raises(ValueError, match="float16 cannot hold"):
        interop.export(interop.Pretrained(loaded.model, params), tmp_path / "out", "hub", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


# ---------------------------------------------------------------------- files for other programs


def test_safetensors_library_reads_our_files(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    for dtype in ("float32", "float16"):
        interop.export(interop.from_pretrained(GOLDEN / "hub_A"), tmp_path / dtype, "hub", dtype=dtype)
        found = library.load_file(tmp_path / dtype / "model.safetensors")
        expected, _ = safetensors_file.read(GOLDEN / "hub_A/model.safetensors")
        assert_same_arrays(
            dict(sorted(found.items())), {k: v.read().astype(dtype) for k, v in sorted(expected.items())}
        )


def test_pytorch_reads_our_files(tmp_path):
    torch = pytest.importorskip("torch")
    interop.export(
        interop.from_pretrained(GOLDEN / "megatron_A", num_heads=4), tmp_path / "out", "megatron", model_parallel=2
    )
    for rank in (0, 1):
        name = f"1000/mp_rank_{rank:02d}_model_states.pt"
        for options in ({}, {"mmap": True}):
            found = torch.load(tmp_path / "out" / name, weights_only=True, **options)
            expected = torch.load(GOLDEN / "megatron_A_MP2" / name, weights_only=True)
            weights, wanted = found.pop("module"), expected.pop("module")
            assert found == expected
            assert list(weights) == list(wanted)
            assert all(torch.equal(weights[key], wanted[key]) for key in wanted)


def test_tensors_are_aligned_like_those_of_torch_save(tmp_path):
    interop.export(interop.from_pretrained(GOLDEN / "hub_B"), tmp_path / "out", "megatron")
    path = next((tmp_path / "out").glob("*/mp_rank_00_model_states.pt"))
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            header = content[info.header_offset : info.header_offset + 30]
            start = (
                info.header_offset
                + 30
                + int.from_bytes(header[26:28], "little")
                + int.from_bytes(header[28:30], "little")
            )
            assert start % 64 == 0, info.filename


# ---------------------------------------------------------------------- tokenizers


def tiny_bert(task_mask=False):
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + list("abcdefgh") + [f"##{c}" for c in "abcdefgh"]
    vocabulary = "\n".join(names).encode()
    return WordPieceTokenizer(vocabulary, bert_commands(vocabulary, task_mask=task_mask), 112)


def tiny_roberta():
    bytes_ = [chr(c) for c in range(33, 100)]
    vocabulary = json.dumps({name: i for i, name in enumerate(["<s>", "</s>", "<unk>", *bytes_, "<mask>"])}).encode()
    return ByteBPETokenizer(vocabulary, b"#version\n", roberta_commands(vocabulary), 112)


@pytest.mark.parametrize("to", ["megatron", "hub", "glm_jax"])
@pytest.mark.parametrize("task_mask", [True, False])
def test_tokenizer_goes_along(tmp_path, to, task_mask):
    tokenizer = tiny_bert(task_mask)
    loaded = interop.from_pretrained(GOLDEN / "hub_B", tokenizer=tokenizer)
    interop.export(loaded, tmp_path / "out", to)
    again = interop.from_pretrained(tmp_path / "out")
    assert again.tokenizer.fingerprint() == tokenizer.fingerprint()
    assert again.tokenizer.special == tokenizer.special


def test_hub_gives_robertas_mask_a_row_of_its_own(tmp_path):
    tokenizer = tiny_roberta()
    mask, moved = tokenizer.special.mask, tokenizer.num_tokens
    loaded = interop.from_pretrained(GOLDEN / "hub_B", tokenizer=tokenizer)
    notes = interop.export(loaded, tmp_path / "out", "hub")
    again = interop.from_pretrained(tmp_path / "out")
    assert again.tokenizer.special.mask == moved
    assert str(mask) in notes[0]
    assert str(moved) in notes[0]
    table, original = (np.asarray(x.params["word_embeddings"]["embedding"]) for x in (again, loaded))
    np.testing.assert_array_equal(table[moved], original[mask])
    np.testing.assert_array_equal(np.delete(table, moved, 0), np.delete(original, moved, 0))
    assert interop.export(again, tmp_path / "twice", "hub") == []  # the ids are the hub's already


def test_hub_gives_the_colliding_generation_mask_a_row_of_its_own():
    class Chinese(hub_tokenizer.ChineseSentencePieceTokenizer):
        def __init__(self, commands):
            released.ReleasedTokenizer.__init__(self, 5, commands, 128)

        def __reduce__(self):
            return Chinese, (self.commands, 128)

    own = [
        ("eos", "<e>", 5),
        ("MASK", "[MASK]", 7),
        ("sop", "s", 11),
        ("eop", "e", 12),
        ("gMASK", "[gMASK]", 12),
        ("sMASK", "m", 13),
    ]
    tokenizer = Chinese([Command(*values) for values in own])
    tokenizer.with_commands = Chinese
    moved, rows = hub_tokenizer.for_hub(tokenizer)
    assert {new: old for new, (old, _) in rows.items()} == {14: 12}
    assert {c.name: c.id for c in moved.commands} == {name: i for name, _, i in own} | {"gMASK": 14}


# ---------------------------------------------------------------------- the verb


def test_convert_there_and_back(tmp_path, capsys):
    convert.main([str(GOLDEN / "megatron_A"), str(tmp_path / "run"), "--to", "glm_jax", "--num-heads", "4"])
    convert.main([str(tmp_path / "run"), str(tmp_path / "hub"), "--to", "hub"])
    convert.main([str(tmp_path / "hub"), str(tmp_path / "two"), "--to", "megatron", "--model-parallel", "2"])
    printed = capsys.readouterr().out
    assert "transformer.layers.2.mlp.dense_h_to_4h.weight" in printed
    assert f"wrote {tmp_path / 'two'} (megatron)" in printed
    for rank in (0, 1):
        name = f"mp_rank_{rank:02d}_model_states.pt"
        found, _ = read_module(next((tmp_path / "two").glob(f"*/{name}")))
        expected, _ = read_module(GOLDEN / "megatron_A_MP2/1000" / name)
        assert_same_arrays(found, expected)


def test_a_destination_that_exists_is_refused_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "there").write_text("mine")
    with pytest.raises(SystemExit, match="there exists: choose another folder"):
        convert.main([str(tmp_path / "no such source"), str(tmp_path / "there"), "--to", "hub"])


def test_convert_ends_with_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "glm_jax", "convert", str(GOLDEN / "megatron_A"), str(tmp_path / "x"), "--to", "hub"],
        capture_output=True, text=True, cwd=GOLDEN.parents[1], check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("FormatError: ")
    assert "num_heads" in done.stderr
    assert done.stderr.count("\n") == 1
