"""Importing the package costs little, and its names are what they say."""

import subprocess
import sys

import pytest

import glm_jax


def test_public_names_resolve():
    for name in glm_jax.__all__ * 2:  # twice: a module of the same name would take the place of its function
        assert callable(getattr(glm_jax, name)), name
    with pytest.raises(AttributeError, match="it has Batch"):
        _ = glm_jax.nothing


def test_config_and_tokenizers_need_no_import_of_their_own():
    code = "import glm_jax; print(glm_jax.config.pretrain().kind, glm_jax.tokenizers.load.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "pretrain load\n"


def test_import_loads_nothing_heavy():
    heavy = (
        "grain",
        "tensorflow_datasets",
        "orbax",
        "sentencepiece",
        "rich",
        "tensorboardX",
        "matplotlib",
        "array_record",
    )
    code = f"import sys, glm_jax; glm_jax.GLM, glm_jax.corrupt; print([m for m in {heavy} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    # flax itself imports orbax and rich
    assert set(eval(loaded)) <= {"orbax", "rich"}
