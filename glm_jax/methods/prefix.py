"""Trained prefixes: keys and values of every layer (P-tuning v2), or virtual tokens in front of the text (prompts)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from glm_jax.methods.base import Method, Path, boxer
from glm_jax.model.config import GLMConfig
from glm_jax.model.transformer import GLM

INITS = ("tokens", "random")


@dataclasses.dataclass(frozen=True)
class _Prefix(Method):
    """What both kinds share.

    Attributes:
      length: P, keys and values, or virtual tokens.
      init: "tokens": those of real tokens of the training texts (`start_from`); "random": N(0, init_std²).
    """

    length: int = 20
    init: str = "tokens"

    def __post_init__(self):
        if self.length < 1:
            raise ValueError(f"{self.name}.length {self.length} must be at least 1")
        if self.init not in INITS:
            raise ValueError(f"unknown {self.name}.init {self.init!r}; known: {', '.join(INITS)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"{self.name}.dropout {self.dropout} must lie in [0, 1)")

    def check(self, config: GLMConfig) -> None:
        """Raises ValueError for a prefix that is longer than the model's longest text."""
        if self.length > config.num_positions:
            raise ValueError(
                f"{self.name}.length {self.length} is more than the {config.num_positions} positions of the model: "
                "lower it"
            )

    def trains(self, path: Path) -> bool:
        """All under "prefix"."""
        return path[0] == "prefix"

    def start_from(self, trained: Mapping[str, Any], model: GLM, params: Any, tokens: Sequence[int]) -> dict[str, Any]:
        """`trained` as `init` says; `tokens` are of real texts, repeated where they are fewer than `length`.

        Args:
          trained: of `split`, fresh.
          params: of the model without the prefix.
        """
        if self.init == "random":
            return dict(trained)
        ids = np.resize(np.asarray(tokens, np.int32), self.length)[None]
        return dict(trained) | {"prefix": self._from_tokens(trained["prefix"], model, params, ids)}

    def _from_tokens(self, fresh, model, params, ids):
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class PTuningV2(_Prefix):
    """P-tuning v2 (Liu et al. 2021, arXiv 2110.07602): keys and values in every layer that every position sees.

    Attributes:
      projection: the keys and values come from an MLP over P trained vectors, as in the authors' --prefix_projection;
        it starts at random, and adapters hold what it gives.
      projection_width: of the MLP.
      dropout: of the keys and values.
    """

    name: ClassVar[str] = "p_tuning_v2"
    projection: bool = False
    projection_width: int = 512
    dropout: float = 0.1  # type: ignore[misc]

    def __post_init__(self):
        super().__post_init__()
        if self.projection_width < 1:
            raise ValueError(f"p_tuning_v2.projection_width {self.projection_width} must be at least 1")

    def add(self, params: Mapping[str, Any], config: GLMConfig, key: Any) -> dict[str, Any]:
        """`params` and, under "prefix", random keys and values, or an embedding and its MLP."""
        adapted, box = super().add(params, config, key), boxer(params)
        heads = (config.num_heads, config.head_width)

        def normal(number, shape):
            return config.init_std * jax.random.normal(jax.random.fold_in(key, number), shape)

        if not self.projection:
            axes = ("layers", None, "heads", "head_dim")
            shape = (config.num_layers, self.length, *heads)
            return adapted | {
                "prefix": {name: box(normal(i, shape), axes) for i, name in enumerate(("keys", "values"))}
            }
        width, wide, out = config.hidden_size, self.projection_width, config.num_layers * 2 * config.hidden_size

        def linear(number, inputs, outputs, axes):
            bound = inputs**-0.5  # PyTorch's Linear
            keys = jax.random.split(jax.random.fold_in(key, number))
            kernel = jax.random.uniform(keys[0], (inputs, outputs), jnp.float32, -bound, bound)
            bias = jax.random.uniform(keys[1], (outputs,), jnp.float32, -bound, bound)
            return {"kernel": box(kernel, axes), "bias": box(bias, (None,))}

        vectors = jax.random.normal(key, (self.length, width))  # PyTorch's Embedding
        mlp = {"first": linear(1, width, wide, ("embed", None)), "second": linear(2, wide, out, (None, None))}
        return adapted | {"prefix": {"embedding": box(vectors, (None, "embed")), "mlp": mlp}}

    def _from_tokens(self, fresh, model, params, ids):
        if self.projection:
            return fresh
        keys, values = _keys_values(params, ids, model=model)
        return {"keys": keys[:, 0].astype(jnp.float32), "values": values[:, 0].astype(jnp.float32)}


@dataclasses.dataclass(frozen=True)
class Prompt(_Prefix):
    """Prompt tuning (Lester et al. 2021, arXiv 2104.08691): the embeddings of P virtual tokens in front of the text.

    They see each other and are seen by every position, as in a decoder; positions of the text are not shifted, and the
    vectors hold their own. So a prompt is as cheap as a prefix: its keys and values do not depend on the text.
    """

    name: ClassVar[str] = "prompt"

    def add(self, params: Mapping[str, Any], config: GLMConfig, key: Any) -> dict[str, Any]:
        """`params` and, under "prefix", random vectors."""
        adapted, box = super().add(params, config, key), boxer(params)
        vectors = config.init_std * jax.random.normal(key, (self.length, config.hidden_size))
        return adapted | {"prefix": {"tokens": box(vectors, (None, "embed"))}}

    def _from_tokens(self, fresh, model, params, ids):
        return {"tokens": _embed_text(params, ids, model=model)[0].astype(jnp.float32)}


@functools.partial(jax.jit, static_argnames="model")
def _embed_text(params, ids, *, model):
    return model.apply({"params": params}, ids, method="embed_text")


@functools.partial(jax.jit, static_argnames="model")
def _keys_values(params, ids, *, model):
    embeddings = model.apply({"params": params}, ids, method="embed_text")
    return model.apply({"params": params}, embeddings, method="keys_values_of")
