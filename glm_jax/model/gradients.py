"""Hand-written gradients, and the switch to the derivatives that JAX finds by itself.

The layers and the losses define their gradients by hand (`custom_vjp`), which JAX cannot differentiate in forward mode.
Inside `reference_gradients()` the same functions are plain formulas, so `jax.jvp` and products with the Hessian work.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax

_reference = jax.make_user_context(default_value=False)  # part of the key of jit's cache


def reference_gradients() -> contextlib.AbstractContextManager[None]:
    """Context in which models and losses have the derivatives of their formulas: jvp and Hessians work, slowly.

    Values and gradients stay the same within rounding. Dense attention takes the place of kernels. Functions that
    were compiled outside are compiled again.
    """
    return _reference(True)


def uses_reference() -> bool:
    """Whether this is traced inside `reference_gradients()`."""
    return _reference.value


class custom_vjp:
    """`jax.custom_vjp` for functions that also are their own reference: see `reference_gradients`."""

    def __init__(self, function: Callable, nondiff_argnums: tuple[int, ...] = ()):
        self._function = function
        self._custom = jax.custom_vjp(function, nondiff_argnums=nondiff_argnums)
        functools.update_wrapper(self, function)

    def defvjp(self, forward: Callable, backward: Callable) -> None:
        """Sets the gradient, as `jax.custom_vjp.defvjp`."""
        self._custom.defvjp(forward, backward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self._function if uses_reference() else self._custom)(*args, **kwargs)
