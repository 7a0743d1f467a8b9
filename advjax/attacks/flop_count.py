"""How much a program computes, read off its jaxpr."""

import math

from jax.extend.core import Jaxpr, JaxprEqn

from advjax.cpu.fast_on_cpu import inner_jaxprs

_UNKNOWN = ("callback", "ffi_call", "pallas_call")
"""In the names of primitives whose work cannot be seen."""


def flop_count(jaxpr: Jaxpr, *, per_element: float = 0.0) -> float:
    """Floating-point operations, two per multiply-add of convolutions and matrix products.

    Convolutions count as direct ones, with their padding; of the branches of a condition, the largest counts; a loop
    with an unknown number of turns counts once.  Infinite where the work cannot be seen: in calls of other code, and in
    such loops with products.

    Args:
      jaxpr: the program.
      per_element: what every other equation counts for each element of its results.
    """
    return sum(_flop(eqn, per_element) for eqn in jaxpr.eqns)


def _flop(eqn: JaxprEqn, per_element: float) -> float:
    name = eqn.primitive.name
    if any(unknown in name for unknown in _UNKNOWN):
        return math.inf
    inner = list(inner_jaxprs(eqn))
    if inner:
        counts = [flop_count(jaxpr, per_element=per_element) for jaxpr in inner]
        if name == "while" and any(map(flop_count, inner)):
            return math.inf
        return max(counts) if name == "cond" else eqn.params.get("length", 1) * sum(counts)
    sizes = [math.prod(_shape(var)) for var in eqn.outvars]
    if name == "conv_general_dilated":
        kernel = _shape(eqn.invars[1])
        features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        return 2 * sizes[0] * math.prod(kernel) / max(features, 1)
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * sizes[0] * math.prod(_shape(eqn.invars[0])[axis] for axis in contracted)
    return per_element * sum(sizes)


def _shape(var) -> tuple[int, ...]:
    return getattr(var.aval, "shape", ())
