"""Atomic writes and the comparison of configs."""

import json
import os

import pytest

from glm_jax.files import compare_config, write_json_atomic


def test_write_json_atomic(tmp_path):
    path = tmp_path / "config.json"
    write_json_atomic(path, {"b": [1, 2], "a": "ü"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "ü", "b": [1, 2]}
    for bad in ({"a": float("nan")}, {"a": object()}):
        with pytest.raises(ValueError, match=r"config\.json as JSON"):
            write_json_atomic(path, bad)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "ü", "b": [1, 2]}
    write_json_atomic(str(path), [])
    assert path.read_text() == "[]\n"
    assert os.listdir(tmp_path) == ["config.json"]


def test_compare_config():
    saved = {"model": {"num_layers": 12, "sizes": [1, 2]}, "seed": 0, "old": 1, "empty": {}}
    current = {"model": {"num_layers": 24, "sizes": (1, 2)}, "seed": 0, "new": {"x": None}, "empty": {}}
    assert compare_config(saved, current) == ["model.num_layers", "new.x", "old"]
    assert compare_config(saved, saved) == []
    with pytest.raises(ValueError, match="must be JSON"):
        compare_config({"a": object()}, {})
