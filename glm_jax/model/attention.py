"""Which attention kernel runs: every backend obeys the mask of glm_jax/model/visibility.py, or refuses.

dense, chunked   glm_jax/model/dense_attention.py, any device
cudnn            cuDNN's fused kernels, NVIDIA GPUs
flash            glm_jax/model/flash_gpu.py, Hopper GPUs
splash           glm_jax/model/splash_tpu.py, TPUs
auto             dense or chunked, by device and length
"""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from glm_jax.distributed.accelerators import accelerator_of
from glm_jax.distributed.sharding import on_tpu, traced_device
from glm_jax.model.checks import check_array, check_prefix
from glm_jax.model.dense_attention import chunked_attention, dense_attention, dense_probabilities
from glm_jax.model.gradients import uses_reference
from glm_jax.model.visibility import visible_pairs

_MAX_KEYS_DENSE_ON_V5P = 1024  # with 1,152, GLM-10B's, the step holds 20.6 instead of 17.9 GB beside its state

TrainedKeys = tuple[Float[Array, "#B P N H"], Float[Array, "#B P N H"]]


def attention(
    q: Float[Array, "B Q N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    prefix_lengths: Int[Array, "B"],
    *,
    query_index: Int[Array, "B Q"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    prefix: TrainedKeys | None = None,
    longest_prefix: int | None = None,
    backend: str = "auto",
    dropout_rate: float = 0.0,
    dropout_key: Any | None = None,
) -> Float[Array, "B Q N H"]:
    """softmax(q kᵀ / √H) v over the keys that are visible to each query; softmax in float32, result in q's dtype.

    Args:
      q, k, v: queries, keys and values.
      prefix_lengths: the length of Part A in each row.
      query_index: positions of the queries among the keys; None: query i is at position i.
      segment_ids: separate texts that share a row (see `visible`).
      prefix: trained keys and values (P-tuning v2), visible to every query.
      longest_prefix: a static bound on `prefix_lengths`: positions before it get no scores with keys after it.
      backend: a name in BACKENDS.
      dropout_rate, dropout_key: dropout of the attention probabilities; none without a key.

    Raises:
      ValueError: shapes that do not belong together, as `check_backend`, and queries and keys of different number
        without `query_index`.
    """
    _check_shapes(q, k, v, prefix_lengths, query_index, segment_ids, prefix)
    rate = 0.0 if dropout_key is None else dropout_rate
    check_backend(
        backend, q.dtype, q.shape[-1], dropout_rate=rate, several_texts=segment_ids is not None,
        prefix=prefix is not None,
    )  # fmt: skip
    if query_index is None:
        query_index = jnp.arange(q.shape[1], dtype=jnp.int32)[None, :]
        if longest_prefix is not None and not 0 < longest_prefix < k.shape[1]:
            longest_prefix = None
    else:
        longest_prefix = None  # says nothing about queries at arbitrary positions
    num_trained = 0
    if prefix is not None:
        k, v = with_prefix(prefix, k, v)
        num_trained = prefix[0].shape[1]
    attend = BACKENDS[backend]
    if uses_reference() and backend in _KERNELS:  # without a split, which would drop other probabilities
        attend, longest_prefix = dense_attention, None
    return attend(
        q, k, v, prefix_lengths, query_index, dropout_rate, dropout_key, segment_ids, longest_prefix, num_trained
    )


def with_prefix(
    prefix: TrainedKeys, k: Float[Array, "B T N H"], v: Float[Array, "B T N H"]
) -> tuple[Float[Array, "B _ N H"], Float[Array, "B _ N H"]]:
    """Keys and values after those of a trained prefix, in their dtype; [B P+T N H]."""

    def join(trained, x):
        trained = jnp.broadcast_to(trained.astype(x.dtype), (x.shape[0], *trained.shape[1:]))
        return jnp.concatenate([trained, x], axis=1)

    return join(prefix[0], k), join(prefix[1], v)


def attention_probabilities(
    q: Float[Array, "B Q N H"],
    k: Float[Array, "B T N H"],
    prefix_lengths: Int[Array, "B"],
    *,
    query_index: Int[Array, "B Q"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    prefix: TrainedKeys | None = None,
    backend: str = "auto",
) -> Float[Array, "B N Q _"]:
    """The probabilities that dense attention gives to the keys [B N Q P+T], before dropout; float32.

    Raises ValueError for a backend that never forms them.
    """
    if backend != "dense" and not (backend == "auto" and _dense_is_better(k)):
        raise ValueError(
            f"attention backend {backend!r} does not form attention probabilities here: choose attention_backend "
            "'dense'"
        )
    if query_index is None:
        query_index = jnp.arange(q.shape[1], dtype=jnp.int32)[None, :]
    num_trained = 0
    if prefix is not None:
        k, _ = with_prefix(prefix, k, k)
        num_trained = prefix[0].shape[1]
    return dense_probabilities(q, k, prefix_lengths, query_index, segment_ids, num_trained)


def _check_shapes(q, k, v, prefix_lengths, query_index, segment_ids, prefix):
    check_array("q", q, "B Q N H", (None, None, None, None), jnp.floating)
    batch, queries, heads, width = q.shape
    check_array("k", k, "B T N H", (batch, None, heads, width), jnp.floating)
    check_array("v", v, "B T N H", (batch, k.shape[1], heads, width), jnp.floating)
    check_array("prefix_lengths", prefix_lengths, "B", (batch,), jnp.integer)
    if query_index is not None:
        check_array("query_index", query_index, "B Q", (batch, queries), jnp.integer)
    elif queries != k.shape[1]:
        raise ValueError(f"{queries} queries for {k.shape[1]} keys: pass query_index, their positions among the keys")
    if segment_ids is not None:
        check_array("segment_ids", segment_ids, "B T", (batch, k.shape[1]), jnp.integer)
    if prefix is not None:
        check_prefix(prefix, "B P N H", (batch, None, heads, width))


def _cudnn(q, k, v, prefix_lengths, query_index, dropout_rate, dropout_key, segment_ids, longest_prefix, num_trained):
    """cuDNN's fused kernels store no scores, but take the rule as a mask."""
    queries = q.shape[1]
    mask = visible_pairs(prefix_lengths, query_index, segment_ids, q.shape[:2], k.shape[1], num_trained)
    padding, key_padding = -queries % 8, -k.shape[1] % 8  # its gradients need even sizes, its loads whole vectors
    q = jnp.pad(q, ((0, 0), (0, padding), (0, 0), (0, 0)))
    k, v = (jnp.pad(x, ((0, 0), (0, key_padding), (0, 0), (0, 0))) for x in (k, v))
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, padding), (0, key_padding)))
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")[:, :queries]


def _flash(q, k, v, prefix_lengths, query_index, dropout_rate, dropout_key, segment_ids, *_):
    """The kernel for Hopper GPUs; queries at some positions only (the last layer's) are dense."""
    from glm_jax.model.flash_gpu import flash_attention  # Pallas is slow to import

    if q.shape[1] != k.shape[1]:  # a row has fewer targets than columns
        return dense_attention(q, k, v, prefix_lengths, query_index, dropout_rate, dropout_key, segment_ids)
    return flash_attention(
        q, k, v, prefix_lengths, segment_ids=segment_ids, dropout_rate=dropout_rate, dropout_key=dropout_key
    )


def _splash(q, k, v, prefix_lengths, query_index, dropout_rate, dropout_key, segment_ids, longest_prefix, *_):
    """JAX's kernel for TPUs. Queries at some positions only (the last layer's), and those after the longest prefix, are
    dense.
    """
    from glm_jax.model.splash_tpu import splash_attention

    def dense(q, index):
        return dense_attention(q, k, v, prefix_lengths, index, 0.0, None)

    if q.shape[1] != k.shape[1]:
        return dense(q, query_index)
    if longest_prefix is None:
        return splash_attention(q, k, v, prefix_lengths)
    n = longest_prefix
    in_prefix = splash_attention(q[:, :n], k[:, :n], v[:, :n], prefix_lengths)
    return jnp.concatenate([in_prefix, dense(q[:, n:], query_index[:, n:])], axis=1)


def _auto(q, k, *rest):
    return (dense_attention if _dense_is_better(k) else chunked_attention)(q, k, *rest)


def _dense_is_better(k):
    # On TPUs scores that travel to HBM limit the step; elsewhere chunks only cost time. On v5p XLA keeps too little of
    # the chunks on the chip, and dense moves fewer bytes as long as its scores fit.
    chip = accelerator_of(traced_device())
    on_v5p = chip is not None and chip.name == "v5p"
    return not on_tpu() or (on_v5p and k.shape[1] <= _MAX_KEYS_DENSE_ON_V5P)


BACKENDS = {
    "auto": _auto,
    "dense": dense_attention,
    "chunked": chunked_attention,
    "cudnn": _cudnn,
    "flash": _flash,
    "splash": _splash,
}


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """What a backend needs that does not run everywhere."""

    device: str
    kinds: str  # pattern of the device's name
    widths: tuple[int, ...] = ()  # of a head; empty: any
    dtypes: tuple[str, ...] = ("bfloat16", "float16")
    instead_of_dropout: str | None = None  # backend to choose for what it cannot do; None: it can
    instead_of_segments: str | None = None
    instead_of_prefix: str | None = None


_KERNELS = {
    "cudnn": _Kernel("an NVIDIA GPU", "NVIDIA", widths=tuple(range(8, 129, 8)), instead_of_dropout="flash"),
    "flash": _Kernel("a Hopper GPU", r"\bG?H(20|100|200|800)\b", widths=(64,), instead_of_prefix="dense"),
    "splash": _Kernel(
        "a TPU", "^TPU", dtypes=("bfloat16", "float32"), instead_of_dropout="chunked", instead_of_segments="chunked",
        instead_of_prefix="chunked",
    ),
}  # fmt: skip
PORTABLE = tuple(sorted(set(BACKENDS) - set(_KERNELS)))  # backends that run on any device


def check_backend_name(backend: str) -> None:
    """Raises ValueError for a name that is no backend."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}; known: {', '.join(sorted(BACKENDS))}")


def check_backend(
    backend: str,
    dtype: Any,
    head_width: int,
    *,
    dropout_rate: float = 0.0,
    several_texts: bool = False,
    prefix: bool = False,
) -> None:
    """Raises ValueError for an unknown backend, and for one that cannot do this on the device that is traced for.

    `several_texts`: rows may hold several, separated by segments. `prefix`: there are trained keys and values.
    """
    check_backend_name(backend)
    if backend not in _KERNELS:
        return
    kernel, device, dtype = _KERNELS[backend], traced_device().device_kind, jnp.dtype(dtype).name
    this = f"attention backend {backend!r}"
    if not re.search(kernel.kinds, device):
        raise ValueError(f"{this} needs {kernel.device}, not {device!r}: choose 'auto'")
    if dtype not in kernel.dtypes:
        raise ValueError(f"{this} needs model.dtype {' or '.join(map(repr, kernel.dtypes))}, not {dtype!r}")
    if kernel.widths and head_width not in kernel.widths:
        known = ", ".join(map(str, kernel.widths))
        raise ValueError(f"{this} needs heads of {known} columns, not {head_width}: choose 'auto'")
    if dropout_rate and kernel.instead_of_dropout:
        raise ValueError(
            f"{this} drops no attention: set attention_dropout to 0, not {dropout_rate}, or choose attention_backend "
            f"{kernel.instead_of_dropout!r}"
        )
    if several_texts and kernel.instead_of_segments:
        raise ValueError(
            f"{this} knows one text a row: set corruption.short_sequence_prob to 0, or choose attention_backend "
            f"{kernel.instead_of_segments!r}"
        )
    if prefix and kernel.instead_of_prefix:
        raise ValueError(
            f"{this} takes no prefix of trained keys and values: choose attention_backend {kernel.instead_of_prefix!r}"
        )
