"""Backward pass differentiable approximation (BPDA; Athalye et al. 2018, section 4.1)."""

from collections.abc import Callable

import jax

from advjax.types import Array


def straight_through(exact: Callable[..., Array], smooth: Callable[..., Array]) -> Callable[..., Array]:
    """Returns a function with the values of ``exact`` and the gradient of ``smooth``.

    Use it for a preprocessing step without a useful gradient, such as quantization,
    ``straight_through(quantize, lambda x: x)``, or for a whole model.
    """

    def function(*arguments: Array) -> Array:
        approximation = smooth(*arguments)
        return approximation + jax.lax.stop_gradient(exact(*arguments) - approximation)

    return function
