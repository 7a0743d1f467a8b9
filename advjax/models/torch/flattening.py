"""Finds the linear layers that take flattened features, and the order of these, from the network's trace.

PyTorch flattens channels, rows, columns; we flatten rows, columns, channels. Only the computation itself tells what a
layer's inputs are: a block may pool or transpose before it flattens.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.extend import core

from advjax.types import Array, PyTree

Origin: TypeAlias = int | np.ndarray | None
"""The leaf number of a value, or for each of its entries the position that PyTorch flattens it to."""


def torch_positions(
    function: Callable[[PyTree, Array], Any], variables: PyTree, images: jax.ShapeDtypeStruct
) -> dict[int, np.ndarray]:
    """For each kernel applied to flattened features, PyTorch's positions of its inputs.

    Args:
      function: ``(variables, images) -> anything``, the network.
      variables: arrays, or their shapes.
      images: shape of one image, [1, h, w, c].

    Returns:
      leaf number in ``variables`` -> int [inputs]: our input i is PyTorch's input ``positions[i]``.
    """
    traced = jax.make_jaxpr(function)(variables, images).jaxpr
    found: dict[int, np.ndarray] = {}
    _follow(traced, [*range(len(jax.tree.leaves(variables))), None], found)
    return found


def _follow(jaxpr: core.Jaxpr, origins: Sequence[Origin], found: dict[int, np.ndarray]) -> list[Origin]:
    """Propagates origins from the arguments of a program to its results."""
    known: dict[Any, Origin] = dict(zip(jaxpr.invars, origins, strict=True))

    def origin(value: Any) -> Origin:
        return None if isinstance(value, core.Literal) else known.get(value)

    for equation in jaxpr.eqns:
        operands = [origin(value) for value in equation.invars]
        inner = _called(equation)
        if inner is not None:
            results = _follow(inner, operands, found)
        else:
            if equation.primitive.name == "dot_general":
                _note(equation, operands, found)
            results = [_result(equation, operands, value) for value in equation.outvars]
        known.update(zip(equation.outvars, results, strict=True))
    return [origin(value) for value in jaxpr.outvars]


def _called(equation: Any) -> core.Jaxpr | None:
    """The program of an equation that only calls it."""
    for value in equation.params.values():
        inner = value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
        if isinstance(inner, core.Jaxpr) and len(inner.invars) == len(equation.invars):
            return inner
    return None


def _note(equation: Any, operands: Sequence[Origin], found: dict[int, np.ndarray]) -> None:
    features, kernel = operands
    (contracted, _), _ = equation.params["dimension_numbers"]
    if isinstance(kernel, int) and isinstance(features, np.ndarray) and features.ndim == 2 and contracted == (1,):
        found[kernel] = features[0]


def _result(equation: Any, operands: Sequence[Origin], result: Any) -> Origin:
    name, shape = equation.primitive.name, result.aval.shape
    if name in ("reshape", "transpose"):
        positions = operands[0]
        if positions is None and len(equation.invars[0].aval.shape) == 4:
            positions = _positions(equation.invars[0].aval.shape)
        if not isinstance(positions, np.ndarray):
            return None
        return positions.reshape(shape) if name == "reshape" else positions.transpose(equation.params["permutation"])
    if name == "convert_element_type":
        return operands[0]
    # Elementwise, like an activation, or with the same layout, like a padded convolution.
    return next((each for each in operands if isinstance(each, np.ndarray) and each.shape == shape), None)


def _positions(shape: tuple[int, ...]) -> np.ndarray:
    """PyTorch's flat positions of features [n, h, w, c]."""
    n, height, width, channels = shape
    return np.arange(n * channels * height * width).reshape(n, channels, height, width).transpose(0, 2, 3, 1)
