"""Learning-rate schedules and the Optax transformation chain.

What the original does is kept: the counter is 0 before the first step (so a warm-up starts with a step of rate 0),
layer normalisation and biases are not decayed, embeddings are, and clipping multiplies by max_norm / (norm + 1e-6).
One difference: its linear schedule becomes negative after its end (see `schedule`).
"""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from glm_jax.files import nearest

SCHEDULES = ("linear", "cosine", "constant", "inverse_square_root", "exponential")
OPTIMIZERS = ("adamw", "adafactor")


def schedule(
    name: str,
    peak_lr: float,
    decay_steps: int,
    warmup: int | float = 0,
    final_lr_ratio: float = 0.1,
    clamp: bool = True,
) -> optax.Schedule:
    """Returns the learning rate as a function of the number of steps taken before (0 at the first step).

    With N = decay_steps and w warm-up steps: `peak_lr * n / w` while n <= w, then for q = (n - w) / (N - w)
      linear               peak_lr * (1 - (1 - final_lr_ratio) * q)
      cosine               peak_lr * (final_lr_ratio + (1 - final_lr_ratio) * (1 + cos(pi * q)) / 2)
      constant             peak_lr
      inverse_square_root  peak_lr * sqrt(max(w, 1) / n), as T5 (Raffel et al. 2020); final_lr_ratio is not used
      exponential          peak_lr: in the original this name does not decay
    After N, linear and cosine stay at `peak_lr * final_lr_ratio`. The original's linear schedule goes on falling and
    becomes negative; `clamp=False` reproduces that. Up to N both are equal.

    The returned function accepts a traced int32 (result float32) or a Python or NumPy number (result float64). It takes
    `peak_lr=` in the place of the one given here, which may be traced.

    Args:
      name: one of SCHEDULES.
      peak_lr: highest learning rate.
      decay_steps: N, at least 1.
      warmup: int, a number of steps; or float below 1, a fraction of N (may be part of a step, as in the original).
        At most half of N, as in the original. 0 starts at the peak.
      final_lr_ratio: final rate divided by the peak.
      clamp: keep the linear schedule at its final value after N.

    Raises:
      ValueError: unknown name or a value outside of these rules.
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; choose from {nearest(name, SCHEDULES)}")
    if isinstance(decay_steps, bool) or int(decay_steps) != decay_steps or decay_steps < 1:
        raise ValueError(f"decay_steps = {decay_steps!r}: must be a whole number of steps, at least 1")
    if not (math.isfinite(peak_lr) and peak_lr >= 0):
        raise ValueError(f"peak_lr = {peak_lr!r}: must be finite and not negative")
    if not 0 <= final_lr_ratio <= 1:
        raise ValueError(f"final_lr_ratio = {final_lr_ratio!r}: must be between 0 and 1 (final rate / peak)")
    if isinstance(warmup, bool) or not warmup >= 0:
        raise ValueError(f"warmup = {warmup!r}: must be a number of steps (int) or a fraction of decay_steps (float)")
    if isinstance(warmup, float) and warmup >= 1:
        raise ValueError(f"warmup = {warmup!r}: a float is a fraction below 1; write an int for a number of steps")
    warmup_steps = warmup * decay_steps if isinstance(warmup, float) else warmup
    if 2 * warmup_steps > decay_steps:
        raise ValueError(
            f"warmup of {warmup_steps:g} steps is more than half of decay_steps = {decay_steps}; "
            "shorten the warm-up, or give it as a fraction such as 0.05"
        )

    def rate(count, peak_lr=peak_lr):
        xp = np if isinstance(count, (int, float, np.ndarray, np.generic)) else jnp
        n = xp.asarray(count, np.float64 if xp is np else np.float32)
        q = (n - warmup_steps) / (decay_steps - warmup_steps)
        if name == "linear":
            factor = 1.0 - (1.0 - final_lr_ratio) * (xp.minimum(q, 1.0) if clamp else q)
        elif name == "cosine":
            factor = final_lr_ratio + (1.0 - final_lr_ratio) * (1.0 + xp.cos(xp.pi * xp.minimum(q, 1.0))) / 2.0
        elif name == "inverse_square_root":
            start = max(warmup_steps, 1.0)
            factor = xp.sqrt(start / xp.maximum(n, start))
        else:
            factor = xp.ones_like(n)
        if warmup_steps > 0:
            factor = xp.where(n <= warmup_steps, n / warmup_steps, factor)
        return peak_lr * factor

    return rate


def decay_mask(params: Any) -> Any:
    """Returns a tree of bools like `params` (boxed or not): True where weight decay applies.

    As in the original: not for parameters named `bias`, nor for any parameter of a layer normalisation; embeddings, and
    everything else, decay.
    """

    def decays(path, _):
        *modules, leaf = _name(path).split("/")
        return leaf != "bias" and not any(re.search(r"layer_?norm", module, re.IGNORECASE) for module in modules)

    return jax.tree_util.tree_map_with_path(decays, params)


class ClipState(NamedTuple):
    """State of `clip_by_global_norm`: the norm of the last gradient before clipping, float32 []."""

    grad_norm: Float[Array, ""]


def clip_by_global_norm(max_norm: float | None) -> optax.GradientTransformation:
    """Scales gradients by min(1, max_norm / (norm + 1e-6)), as the original, and remembers the norm.

    `optax.clip_by_global_norm` has no 1e-6 and does not report the norm. None measures without clipping. Its `init`
    refuses parameters that are not float32, because Optax gives the moments the dtype of the parameters.

    Raises:
      ValueError: max_norm is not positive.
    """
    if max_norm is not None and not max_norm > 0:
        raise ValueError(f"max_grad_norm = {max_norm!r}: must be positive; None turns clipping off")

    def init(params):
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if leaf.dtype != jnp.float32:
                raise ValueError(f"parameter {_name(path)} is {leaf.dtype}: trained parameters must be float32")
        return ClipState(jnp.zeros((), jnp.float32))

    def update(updates, state, params=None):
        del state, params
        norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), updates))
        if max_norm is not None:
            factor = jnp.minimum(1.0, max_norm / (norm + 1e-6))
            updates = jax.tree.map(lambda g: g * factor.astype(g.dtype), updates)
        return updates, ClipState(norm)

    return optax.GradientTransformation(init, update)


class RateState(NamedTuple):
    """State of the learning rate: steps taken, int32 [], and the rate of the last one, float32 []."""

    count: Array
    learning_rate: Float[Array, ""]


def make_optimizer(
    params: Any,
    learning_rate: optax.Schedule | float,
    *,
    name: str = "adamw",
    b1: float = 0.9,
    b2: float = 0.98,
    eps: float = 1e-6,
    weight_decay: float = 0.1,
    max_grad_norm: float | None = 1.0,
    lr_multipliers: Sequence[tuple[str, float]] = (),
) -> optax.GradientTransformationExtraArgs:
    """Returns clip → AdamW or Adafactor → decoupled weight decay → learning rate; defaults are those of the paper.

    The moments are float32. Frozen parameters have no moments and no part in the gradient norm. `update` takes
    `peak_lr=` in the place of the schedule's.

    Args:
      params: parameter tree, concrete or abstract, boxed or not; only its names are read.
      learning_rate: from `schedule`, or a constant.
      name: "adamw" (Loshchilov & Hutter 2019) or "adafactor" (Shazeer & Stern 2018, with a given rate and scaled by the
        parameter; b1, b2 and eps are not used). Layers are stacked, so Adafactor measures scale over all layers, and
        factors only arrays whose two largest dimensions both reach 128.
      b1, b2, eps: of Adam.
      weight_decay: where `decay_mask` is True; multiplied by the learning rate.
      max_grad_norm: clipping threshold, or None.
      lr_multipliers: (regular expression, learning-rate multiplier) pairs for whole parameter names such as
        "layers/mlp/.*"; the first match wins, 0 freezes, parameters without a match have 1.

    Raises:
      ValueError: unknown name, bad number, a pattern that decides about no parameter, or nothing left to train.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}; known: {', '.join(OPTIMIZERS)}")
    for key, value, valid in (("b1", b1, 0 <= b1 < 1), ("b2", b2, 0 <= b2 < 1), ("eps", eps, eps > 0)):
        if not valid:
            raise ValueError(f"{key} = {value!r}: Adam needs 0 <= b1, b2 < 1 and eps > 0")
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay = {weight_decay!r}: must not be negative")
    factors = _multipliers(params, lr_multipliers)
    if not any(factors.values()):
        raise ValueError(f"every parameter is frozen by {[p for p, m in lr_multipliers if m == 0]}: nothing to train")

    if name == "adamw":
        preconditioner = optax.scale_by_adam(b1, b2, eps, mu_dtype=jnp.float32)
    else:
        preconditioner = optax.chain(
            optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()
        )
    tx = optax.chain(
        clip_by_global_norm(max_grad_norm),
        preconditioner,
        optax.add_decayed_weights(weight_decay, mask=decay_mask) if weight_decay else optax.identity(),
        _scale_by_name(factors) if set(factors.values()) - {0.0, 1.0} else optax.identity(),
        _scale_by_rate(learning_rate),
    )
    if all(factors.values()):
        return tx
    return optax.partition(
        {"trained": tx, "frozen": optax.set_to_zero()},
        lambda tree: _map_names(lambda key: "trained" if factors[key] else "frozen", tree),
    )


def metrics(opt_state: Any, grads: Any) -> dict[str, Float[Array, ""]]:
    """Returns {"grad_norm", "learning_rate"} of the last update, float32 [] each.

    From a `make_optimizer` state: the norm is the one before clipping; frozen parameters are not in it. The state of
    another optimizer may lack them: then the norm is that of `grads`, and the rate is left out.
    """
    get = functools.partial(optax.tree.get, opt_state, default=None)
    norm, rate = get("grad_norm"), get("learning_rate")
    values = {} if rate is None else {"learning_rate": rate}
    return values | {"grad_norm": optax.tree.norm(grads) if norm is None else norm}


def _scale_by_rate(learning_rate: optax.Schedule | float) -> optax.GradientTransformationExtraArgs:
    """Like optax.scale_by_learning_rate, but the state remembers the rate for the metrics."""
    rate_at = learning_rate if callable(learning_rate) else schedule("constant", learning_rate, 1)

    def init(params):
        del params
        return RateState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(updates, state, params=None, *, peak_lr=None, **other):
        del params, other
        replaced = {} if peak_lr is None else {"peak_lr": peak_lr}
        rate = jnp.asarray(rate_at(state.count, **replaced), jnp.float32)
        updates = jax.tree.map(lambda u: -rate.astype(u.dtype) * u, updates)
        return updates, RateState(optax.safe_increment(state.count), rate)

    return optax.GradientTransformationExtraArgs(init, update)


def _scale_by_name(factors: Mapping[str, float]) -> optax.GradientTransformation:
    def update(updates, params=None):
        del params
        return jax.tree_util.tree_map_with_path(lambda path, u: u * factors[_name(path)], updates)

    return optax.stateless(update)


def _multipliers(params: Any, patterns: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Parameter name → multiplier; every pattern must be the first match of at least one parameter."""
    for pattern, multiplier in patterns:
        if not (math.isfinite(multiplier) and multiplier >= 0):
            raise ValueError(f"multiplier of {pattern!r} = {multiplier!r}: must be finite and not negative; 0 freezes")
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    first = {name: next((i for i, (p, _) in enumerate(patterns) if re.fullmatch(p, name)), None) for name in names}
    for i, (pattern, _) in enumerate(patterns):
        if i not in first.values():
            raise ValueError(
                f"multiplier pattern {pattern!r} decides about no parameter (whole names must match, the first match "
                f"wins); choose from {nearest(pattern, names)}"
            )
    return {name: 1.0 if i is None else float(patterns[i][1]) for name, i in first.items()}


def _name(path: tuple) -> str:
    """'layers/mlp/…' from a tree path; the attribute inside a Linen box is no part of the name."""
    keys = [key for key in path if not isinstance(key, jax.tree_util.GetAttrKey)]
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _map_names(function, tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: function(_name(path)), tree)
