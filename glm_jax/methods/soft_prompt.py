"""The original's soft prompt (PromptSpell; P-tuning, Liu et al. 2021, arXiv 2103.10385): vectors in the template."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from glm_jax.methods.base import Method, Path, boxer
from glm_jax.model.config import GLMConfig

FUNCTIONS = ("none", "mlp", "lstm")


@dataclasses.dataclass(frozen=True)
class PromptSpell(Method):
    """Trained vectors in place of the template's soft prompt tokens, made as `model.soft_prompt` says.

    Attributes:
      length: number of vectors (--num-prompt-tokens), and of columns that they take from the text.
      function: "none", "mlp" or "lstm" (--prompt-func).
      init: "random", or "words" as --prompt-init: each vector between the embedding of a frequent token and that of a
        word of the verbalizer.
    """

    name: ClassVar[str] = "prompt_spell"
    length: int = 9
    function: str = "lstm"
    init: str = "random"

    def __post_init__(self):
        if self.length < 1:
            raise ValueError(f"prompt_spell.length {self.length} must be at least 1")
        for field, known in (("function", FUNCTIONS), ("init", ("random", "words"))):
            if getattr(self, field) not in known:
                raise ValueError(f"unknown prompt_spell.{field} {getattr(self, field)!r}; known: {', '.join(known)}")

    def check(self, config: GLMConfig) -> None:
        """Raises ValueError for a prompt that fills the model's longest text, and for an LSTM of an odd width."""
        if self.length + 3 > config.num_positions:
            raise ValueError(
                f"prompt_spell.length {self.length} leaves no room for text in the {config.num_positions} positions of "
                "the model: lower it"
            )

    def add(self, params: Mapping[str, Any], config: GLMConfig, key: Any) -> dict[str, Any]:
        """`params` and, under "prompt", fresh vectors and what makes them: see glm_jax/model/soft_prompt.py."""
        adapted, box, width = super().add(params, config, key), boxer(params), config.hidden_size
        counter = iter(range(1, 100))

        def linear(inputs, outputs, bound):
            keys = jax.random.split(jax.random.fold_in(key, next(counter)))
            kernel = jax.random.uniform(keys[0], (inputs, outputs), jnp.float32, -bound, bound)
            bias = jax.random.uniform(keys[1], (outputs,), jnp.float32, -bound, bound)
            return {"kernel": box(kernel, (None, None)), "bias": box(bias, (None,))}

        prompt: dict[str, Any] = {
            "embedding": box(config.init_std * jax.random.normal(key, (self.length, width)), (None, "embed"))
        }
        if self.function == "lstm":

            def direction(inputs):
                bound = width**-0.5  # PyTorch's LSTM
                return {"input": linear(inputs, 4 * width, bound), "hidden": linear(width, 4 * width, bound)}

            prompt["lstm"] = {
                f"layer_{number}": {side: direction(inputs) for side in ("forward", "backward")}
                for number, inputs in ((0, width), (1, 2 * width))
            }
        if self.function != "none":
            inputs = 2 * width if self.function == "lstm" else width
            prompt["mlp"] = {
                "first": linear(inputs, width, inputs**-0.5),
                "second": linear(width, width, width**-0.5),
            }
        return adapted | {"prompt": prompt}

    def trains(self, path: Path) -> bool:
        """All under "prompt"."""
        return path[0] == "prompt"

    def start_from(
        self, trained: Mapping[str, Any], params: Any, words: Sequence[int], seed: int = 0
    ) -> dict[str, Any]:
        """`trained` as `init` says.

        Args:
          params: of the model.
          words: ids of the verbalizer's tokens; without any, only frequent tokens count.
        """
        if self.init == "random":
            return dict(trained)
        random, table = np.random.default_rng(seed), params["word_embeddings"]["embedding"]
        frequent = table[random.integers(0, min(5000, len(table)), self.length)]
        vectors = frequent
        if len(words):
            ratio = random.random((self.length, 1)).astype(np.float32)
            vectors = ratio * frequent + (1 - ratio) * table[random.choice(np.asarray(words), self.length)]
        prompt = dict(trained["prompt"]) | {"embedding": jnp.asarray(vectors, jnp.float32)}
        return dict(trained) | {"prompt": prompt}
