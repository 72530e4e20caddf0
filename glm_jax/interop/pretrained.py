"""The result of opening a model, whoever saved it."""

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any

from glm_jax.decoding import Decoder
from glm_jax.interop.adapter import fingerprint, open_adapter, write_adapter
from glm_jax.interop.errors import FormatError
from glm_jax.interop.extras import EXTRAS
from glm_jax.interop.folders import check_new
from glm_jax.interop.load_report import LoadReport
from glm_jax.methods import Method, merge
from glm_jax.model.transformer import GLM
from glm_jax.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """An opened model, as `from_pretrained` returns it: for `fill`, `generate`, `stream`, `evaluate` and `export`.

    `model, params, tokenizer = run` unpacks it, and `Pretrained(model, params, tokenizer)` makes one of a model that is
    in memory already.

    Attributes:
      params: the parameters, float32 unless opened with another `param_dtype`; `model.apply({"params": params}, …)`.
        Where the checkpoint has them, params["classifier"] is for `model.classifier_head` and params["prompt"], a soft
        prompt, for `model.soft_prompt`.
      tokenizer: None where the checkpoint has none.
      path: where the model was read.
      step: of training; None where the checkpoint does not state one.
      config: the config.json of a run, in the keys of today; None for other checkpoints.
      dtype: of the tensors on disk; None where they differ.
      metadata: the checkpoint's other plain entries, such as its iteration.
      checksum: of the parameters of a run, the same on every mesh; None for other checkpoints.
      report: every tensor and where it was read; `str()` of it is a table.
      adapter: what the adapter.json of an opened adapter says, with its "path"; None without one.
    """

    model: GLM
    params: Mapping[str, Any]
    tokenizer: Tokenizer | None = None
    path: str = "a model in memory"
    step: int | None = None
    config: Mapping[str, Any] | None = None
    dtype: str | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    checksum: str | None = None
    report: LoadReport | None = None
    adapter: Mapping[str, Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.params, self.tokenizer))

    @property
    def model_params(self) -> dict[str, Any]:
        """`params` without classifier and soft prompt."""
        return {name: tree for name, tree in self.params.items() if name not in EXTRAS}

    @functools.cached_property
    def decoder(self) -> Decoder:
        """What `fill`, `generate` and `stream` use. Made at the first use, and kept with its copy of the parameters.

        Raises FormatError where there is no tokenizer.
        """
        return Decoder(self.model, self.model_params, self.require_tokenizer())

    def with_adapter(self, path: str | os.PathLike) -> "Pretrained":
        """This model with the adapter in the folder `path` (`interop.adapter`); the arrays of the model are shared.

        Raises FormatError for a folder without adapter, a damaged one, and the adapter of another model.
        """
        if self.adapter is not None:
            raise FormatError(
                f"{self.path} has the adapter {self.adapter['path']} already: add to the model without it"
            )
        params, settings = open_adapter(path, self.params, self.model.config, self.path)
        return dataclasses.replace(self, params=params, checksum=None, adapter={**settings, "path": str(path)})

    def save_adapter(self, path: str | os.PathLike, method: Method, trained: Mapping[str, Any]) -> None:
        """Writes what `method` has trained on this model to the new folder `path`, for `with_adapter`.

        Args:
          trained: what `method.split` gives.

        Raises ValueError where something is at `path`.
        """
        check_new(path)
        base = {"name": self.path, "fingerprint": fingerprint(self.params)}
        write_adapter(path, method, trained, self.model.config, base)

    def merge(self) -> "Pretrained":
        """This model with LoRA or (IA)³ in its kernels. Raises ValueError where there is none, or a prefix."""
        return dataclasses.replace(self, params=merge(self.params)[0], checksum=None, adapter=None)

    @property
    def pool(self) -> str:
        """The token that the classification head reads."""
        head = (self.adapter or {}).get("head") or {}
        return head.get("pool") or (self.config or {}).get("pool", "cls")

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises FormatError where there is none."""
        if self.tokenizer is None:
            raise FormatError(
                f"{self.path} has no tokenizer: name a folder with its vocabulary (vocab.txt, vocab.json with "
                "merges.txt, or *.model) as tokenizer (--tokenizer on the command line)"
            )
        return self.tokenizer
