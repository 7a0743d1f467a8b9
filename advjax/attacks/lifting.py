"""Turns arrays that a function closes over into arguments, so that weights are not compiled into programs."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from advjax.attacks.input_checks import explaining_train_mode
from advjax.types import PyTree


def lift(function: Callable[..., Any], *examples: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """Separates a function from its array constants.

    Constants are found in the function itself, which may be a ``functools.partial`` or an object, and in functions
    under ``jax.jit`` that it calls, at any depth.  Scalars, constants of a ``jit`` inside a loop or branch, and
    constants that change with the shapes of the arguments stay in the function.

    Args:
      function: traceable function of arrays.
      *examples: arguments, or their shapes and dtypes.

    Returns:
      ``(constants, bind)`` such that ``bind(constants)(*arguments) == function(*arguments)``.
    """
    constants = _liftable(_constants(_traced(function, *examples)[0]))

    def bind(variables: Sequence[Any]) -> Callable[..., Any]:
        return functools.partial(_call, function, constants, variables)

    return [constant if isinstance(constant, jax.Array) else np.asarray(constant) for constant in constants], bind


def _call(function: Callable[..., Any], lifted: list[Any], variables: Sequence[Any], *arguments: Any) -> Any:
    """``function(*arguments)``, with ``variables`` instead of the ``lifted`` constants."""
    traced, shapes = _traced(function, *arguments)
    leaves, structure = jax.tree.flatten(_constants(traced))
    here = _liftable(leaves)
    if len(here) == len(lifted):
        replaced = iter(new if _same(a, b) else b for a, b, new in zip(lifted, here, variables, strict=True))
        leaves = [next(replaced) if np.ndim(leaf) else leaf for leaf in leaves]
    results = _evaluate(traced, jax.tree.unflatten(structure, leaves), jax.tree.leaves(arguments))
    return jax.tree.unflatten(jax.tree.structure(shapes), results)


def _traced(function: Callable[..., Any], *arguments: Any) -> tuple[ClosedJaxpr, PyTree]:
    """Traces a function as it is now; returns the shapes of its results, too."""
    # JAX caches traces by function, and would miss that an object in its closure has new weights.
    with explaining_train_mode():
        return jax.make_jaxpr(lambda *arguments: function(*arguments), return_shape=True)(*arguments)


def _constants(traced: ClosedJaxpr) -> PyTree:
    """The constants of a traced function and, by the number of the equation, of the jitted functions that it calls."""
    nested = {number: _constants(eqn.params["jaxpr"]) for number, eqn in enumerate(traced.eqns) if _is_jit(eqn)}
    return [list(traced.consts), {number: inner for number, inner in nested.items() if jax.tree.leaves(inner)}]


def _liftable(constants: PyTree) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(constants) if np.ndim(leaf)]


def _is_jit(eqn: Any) -> bool:
    return eqn.primitive.name in ("jit", "pjit") and isinstance(eqn.params.get("jaxpr"), ClosedJaxpr)


def _same(first: Any, second: Any) -> bool:
    """Whether two constants are the same, up to the last bit."""
    if first is second:
        return True
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if jnp.issubdtype(first.dtype, jax.dtypes.prng_key):
        first, second = jax.random.key_data(first), jax.random.key_data(second)
    return np.asarray(first).tobytes() == np.asarray(second).tobytes()


def _evaluate(traced: ClosedJaxpr, constants: PyTree, arguments: Sequence[Any]) -> list[Any]:
    """Evaluates a traced function with other constants.

    Each equation is evaluated as it is, with its own differentiation rules; only ``jit`` with constants is rebuilt.
    """
    own, nested = constants
    jaxpr = traced.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*own, *arguments], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for number, eqn in enumerate(jaxpr.eqns):
        inputs = [read(atom) for atom in eqn.invars]
        if number in nested:
            inner = functools.partial(_evaluate, eqn.params["jaxpr"])
            results = jax.jit(inner)(nested[number], inputs)
        else:
            variables = dict.fromkeys(atom for atom in eqn.invars if not isinstance(atom, Literal))
            alone = jaxpr.replace(constvars=[], invars=list(variables), outvars=list(eqn.outvars), eqns=[eqn])
            results = jaxpr_as_fun(ClosedJaxpr(alone, []))(*map(read, variables))
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
