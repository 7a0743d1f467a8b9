"""Array constants of a function become arguments, and nothing else about it changes."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.attacks.lifting import lift

WEIGHTS = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
BIAS = jnp.asarray(np.random.default_rng(1).normal(size=3).astype(np.float32))
X = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)


@jax.custom_vjp
def straight_through(x):
    return jnp.round(x)


straight_through.defvjp(lambda x: (straight_through(x), None), lambda _, gradient: (gradient,))


def plain(x):
    return jax.nn.relu(x @ WEIGHTS) + BIAS


jitted = jax.jit(plain)


class Linear(NamedTuple):
    weights: np.ndarray

    def __call__(self, x):
        return x @ self.weights


def in_scan(x):
    return jax.lax.scan(lambda carry, _: (jnp.tanh(carry @ WEIGHTS), None), x, length=3)[0]


@jax.jit
def twice_jitted(x):
    return straight_through(jitted(x)) * BIAS


FUNCTIONS = {
    "closure": (plain, 2),
    "jit": (jitted, 2),
    "jit in a jit": (twice_jitted, 3),
    "jit in a function": (lambda x: jitted(x) + jitted(2 * x) @ WEIGHTS, 5),
    "partial": (functools.partial(lambda weights, x: x @ weights, WEIGHTS), 1),
    "callable object": (Linear(WEIGHTS), 1),
    "bound method": (Linear(WEIGHTS).__call__, 1),
    "scan": (in_scan, 1),
    "remat": (jax.checkpoint(plain), 2),
    "grad": (jax.grad(lambda x: plain(x).sum()), None),
    "nothing to lift": (jnp.tanh, 0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_equal_values_and_gradients_without_a_constant(name):
    function, count = FUNCTIONS[name]
    constants, bind = lift(function, jax.ShapeDtypeStruct((2, 3), jnp.float32))
    assert count is None or len(constants) == count

    def value_and_gradient(function, x):
        return function(x), jax.grad(lambda x: jnp.sum(function(x) ** 2))(x)

    lifted = jax.jit(lambda constants, x: value_and_gradient(bind(constants), x))
    direct = jax.jit(functools.partial(value_and_gradient, function))
    # Also for another batch size than it was lifted at.
    for x in (X, X[:2], X[:1]):
        for ours, theirs in zip(lifted(constants, x), direct(x), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    text = lifted.lower(constants, X).as_text()
    assert not [line for line in text.splitlines() if "stablehlo.constant" in line and "dense<[" in line]


@pytest.mark.parametrize("name", ["closure", "jit", "jit in a jit", "partial", "scan"])
def test_other_constants_can_be_passed(name):
    function, _ = FUNCTIONS[name]
    constants, bind = lift(function, X)
    zeros = bind([0 * constant for constant in constants])(X)
    assert np.any(np.asarray(function(X)) != 0)
    np.testing.assert_array_equal(zeros, 0)


def test_rules_of_differentiation_are_kept():
    """relu has gradient 0 at 0, a straight-through estimator that of the identity."""
    for function, expected in ((lambda x: jax.nn.relu(x * WEIGHTS[0]), 0.0), (straight_through, 1.0)):
        constants, bind = lift(jax.jit(lambda x, function=function: function(x) + 0 * BIAS), X)
        gradient = jax.grad(lambda x: bind(constants)(x).sum())(jnp.zeros((2, 3)))  # noqa: B023
        np.testing.assert_array_equal(gradient, expected)


def test_what_depends_on_the_batch_stays():
    def model(x):
        return x @ WEIGHTS + np.arange(len(x), dtype=np.float32)[:, None]

    constants, bind = lift(model, X[:2])
    np.testing.assert_allclose(jax.jit(bind(constants))(X), model(X), rtol=1e-6)


def test_a_constant_that_changed_is_seen():
    """JAX itself remembers traces by the function."""
    weights = [WEIGHTS]
    model = lambda x: x @ weights[0]  # noqa: E731
    before = lift(model, X)
    weights[0] = 2 * WEIGHTS
    for constants, bind in (before, lift(model, X)):
        np.testing.assert_allclose(bind(constants)(X), 2 * X @ WEIGHTS, rtol=1e-5)


def test_keys_are_constants_too():
    key = jax.random.split(jax.random.key(3), 2)
    constants, bind = lift(lambda x: x + jax.random.normal(key[0], x.shape), X)
    np.testing.assert_array_equal(
        jax.jit(bind(constants))(X), jax.jit(lambda x: x + jax.random.normal(key[0], x.shape))(X)
    )
