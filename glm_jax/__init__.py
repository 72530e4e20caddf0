"""GLM: general language model pretraining with autoregressive blank infilling, in JAX.

The public names load on first use, so that importing the package costs no more than importing JAX and Flax.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Batch": "glm_jax.model.batch",
    "Slot": "glm_jax.model.batch",
    "CorruptionConfig": "glm_jax.corruption.config",
    "GLM": "glm_jax.model.transformer",
    "GLMConfig": "glm_jax.model.config",
    "TrainState": "glm_jax.training.train_step",
    "Decoder": "glm_jax.decoding",
    "Pretrained": "glm_jax.interop",
    "SpecialTokens": "glm_jax.tokenizers.special",
    "check_batch": "glm_jax.model.batch",
    "corrupt": "glm_jax.corruption.corrupt",
    "corrupt_numpy": "glm_jax.corruption.corrupt_numpy",
    "describe": "glm_jax.corruption.visualize",
    "describe_text": "glm_jax.corruption.visualize",
    "export": "glm_jax.interop",
    "fill": "glm_jax.decoding",
    "from_pretrained": "glm_jax.interop",
    "generate": "glm_jax.decoding",
    "init_params": "glm_jax.model.transformer",
    "loss": "glm_jax.model.losses",
    "make_optimizer": "glm_jax.training.optimizer",
    "make_train_step": "glm_jax.training.train_step",
    "stream": "glm_jax.decoding",
    "train": "glm_jax.tuning.train",
}

# `glm_jax.config.pretrain()`, `glm_jax.methods.LoRA(rank=8)`, `glm_jax.tokenizers.load(folder)`
_MODULES = ("config", "methods", "tokenizers")

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'glm_jax' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, *_MODULES]
