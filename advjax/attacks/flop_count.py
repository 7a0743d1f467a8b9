"""How much a program computes, read off its jaxpr."""

import math

from jax.extend.core import Jaxpr, JaxprEqn

from advjax.cpu.fast_on_cpu import inner_jaxprs

_UNKNOWN = ("callback", "ffi_call", "pallas_call")
"""In the names of primitives whose work cannot be seen."""


def flop_count(jaxpr: Jaxpr, *, per_element: float = 0.0, turns: float = math.inf) -> float:
    """Floating-point operations, two per multiply-add of convolutions and matrix products.

    Convolutions count as direct ones, with their padding; of the branches of a condition, the largest counts.  Infinite
    where the work cannot be seen: in calls of other code, and in loops with products and an unknown number of turns.

    Args:
      jaxpr: the program.
      per_element: what every other equation counts for each element of its results.
      turns: of a loop whose number of turns is unknown, unless it is inside of such a loop.
    """
    return sum(_flop(eqn, per_element, turns) for eqn in jaxpr.eqns)


def _flop(eqn: JaxprEqn, per_element: float, turns: float) -> float:
    name = eqn.primitive.name
    if any(unknown in name for unknown in _UNKNOWN):
        return math.inf
    inner = list(inner_jaxprs(eqn))
    if inner:
        if name == "while":
            has_products = any(map(flop_count, inner))
            once = sum(flop_count(jaxpr, per_element=per_element) for jaxpr in inner)
            return once * (turns if has_products else min(turns, 1))
        counts = [flop_count(jaxpr, per_element=per_element, turns=turns) for jaxpr in inner]
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
