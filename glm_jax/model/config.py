"""Shape and numerics of a GLM, and the published sizes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glm_jax.model.attention import BACKENDS
from glm_jax.model.ops import DENSE

# What a layer stores for the backward pass, from everything to nothing.
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.save_only_these_names(DENSE),  # the dense layers; not the T×T matmuls
    "full": jax.checkpoint_policies.nothing_saveable,
}


# How a text and what is written into it stand in a row: GLM's, and those of the models that it is compared with, which
# have one position a token. Theirs have no table of block positions.
LAYOUTS = {
    "glm": "two positions; Part A sees itself in both directions",
    "prefix": "as GLM, but the positions of Part B go on where Part A ends",
    "causal": "as prefix, but every token sees only what stands before it, in Part A too",
    "masked": "Part A alone, which sees itself in both directions",
}

# Layers, width, heads, padded vocabulary, largest position. Shapes: config/*.sh and config_tasks/model_*.sh of the
# original; base, large and roberta-large also in Table 7 of the paper; 2b, 10b and the Chinese models as released.
_SIZES = {
    "base": (12, 768, 12, 30592, 512),
    "large": (24, 1024, 16, 30592, 512),
    "doc": (24, 1024, 16, 30592, 512),  # large, trained with the document objective (paper, section 3.3)
    "sent": (24, 1024, 16, 30592, 512),  # large, trained with the sentence objective (paper, section 3.3)
    "410m": (30, 1024, 16, 30592, 512),
    "515m": (30, 1152, 18, 30592, 512),
    "roberta-large": (24, 1024, 16, 50304, 512),
    "large-chinese": (24, 1024, 16, 50048, 1024),
    "2b": (36, 2048, 32, 50304, 1024),
    "10b": (48, 4096, 64, 50304, 1024),
    "10b-chinese": (48, 4096, 64, 50048, 1024),
}


@dataclasses.dataclass(frozen=True)
class GLMConfig:
    """Shape and numerics of a GLM. Raises ValueError for invalid values."""

    vocab_size: int
    num_layers: int
    hidden_size: int
    num_heads: int
    max_position_embeddings: int  # M; the tables have rows 0..M, M being the original's sentinel position
    block_positions: bool = True  # False: one table of M rows and no second position (ablation)
    hidden_dropout: float = 0.1  # embeddings and both residual branches
    attention_dropout: float = 0.1  # attention probabilities
    adapter_dropout: float = 0.0  # what LoRA's factors read, and trained prefixes: set by the tuning method
    gelu: str = "tanh"  # "exact" for checkpoints run through the Hugging Face code, which differs here
    dtype: Any = "bfloat16"  # of the computation; parameters, softmax and layer norm statistics are float32
    remat: str = "none"  # a name in REMAT_POLICIES
    scan_layers: bool = True  # False: one copy of the layer each; slower to compile, faster to run on CPU
    attention_backend: str = "auto"
    layout: str = "glm"  # a name in LAYOUTS
    init_std: float = 0.02  # divided by √(2 · num_layers) for the projections into the residual stream

    @classmethod
    def named(cls, name: str, **overrides) -> "GLMConfig":
        """The published size `name` (base, large, 10b, ...), fields replaced by `overrides`."""
        if name not in _SIZES:
            raise ValueError(f"unknown model size {name!r}; known: {', '.join(_SIZES)}")
        fields = ("num_layers", "hidden_size", "num_heads", "vocab_size", "max_position_embeddings")
        return cls(**{**dict(zip(fields, _SIZES[name], strict=True)), **overrides})

    def __post_init__(self):
        for name in ("vocab_size", "num_layers", "hidden_size", "num_heads", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}: every head gets the "
                f"same width; nearest is {round(self.hidden_size / self.num_heads) * self.num_heads}"
            )
        for name in ("hidden_dropout", "attention_dropout", "adapter_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} {getattr(self, name)} must lie in [0, 1)")
        for name, known in (
            ("gelu", ("tanh", "exact")),
            ("remat", REMAT_POLICIES),
            ("attention_backend", BACKENDS),
            ("layout", LAYOUTS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}")
        try:
            dtype = jnp.dtype(self.dtype)
        except TypeError:
            raise ValueError(f"unknown dtype {self.dtype!r}; use 'bfloat16', 'float16' or 'float32'") from None
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"dtype {dtype.name} is not a floating type; use 'bfloat16', 'float16' or 'float32'")
        object.__setattr__(self, "dtype", dtype.name)
        if self.layout != "glm":
            object.__setattr__(self, "block_positions", False)

    @property
    def head_width(self) -> int:
        """H = D / N."""
        return self.hidden_size // self.num_heads

    @property
    def ffn_width(self) -> int:
        """F = 4 D, fixed in the original."""
        return 4 * self.hidden_size

    @property
    def num_positions(self) -> int:
        """Rows of the position table(s)."""
        return self.max_position_embeddings + int(self.block_positions)


def check_lengths(config: GLMConfig, position_ids: Any, block_position_ids: Any = 0) -> None:
    """Raises ValueError if a position lies outside the model's tables.

    Takes concrete integer arrays or only their largest values, so that a trainer can check its sequence length before
    it compiles. In the model itself positions are traced: there a position outside the tables turns the row's output
    into NaN.
    """
    checks = [("position_ids", position_ids)]
    if config.block_positions:
        checks.append(("block_position_ids", block_position_ids))
    for name, ids in checks:
        low, high = int(np.min(ids)), int(np.max(ids))
        if low < 0 or high >= config.num_positions:
            raise ValueError(
                f"{name} reach from {low} to {high}, but the table holds positions 0 to {config.num_positions - 1}: "
                f"use shorter texts or raise max_position_embeddings (now {config.max_position_embeddings})"
            )
