"""Looks for what ``fast_on_cpu`` replaces."""

import collections

import jax

SLOW = {"conv_general_dilated", "reduce_window_max", "reduce_window_sum"}


def slow_equations(function, *args):
    """How often each slow equation occurs in the program of a function, substitutes and custom rules aside."""

    def names(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in SLOW:
                yield eqn.primitive.name
            if not eqn.primitive.name.startswith("custom") and "branches_platforms" not in eqn.params:
                for value in jax.tree.leaves(eqn.params, is_leaf=lambda value: hasattr(value, "eqns")):
                    if hasattr(value, "eqns"):
                        yield from names(value)

    return collections.Counter(names(jax.make_jaxpr(lambda *args: function(*args))(*args)))
