import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from advjax.attacks.flop_count import flop_count

A, B = np.ones((5, 3), np.float32), np.ones((3, 7), np.float32)
PRODUCT = 2 * 5 * 3 * 7
SQUARE = 2 * 5 * 7 * 7
KERNEL = np.ones((3, 3, 4, 6), np.float32)
IMAGES = np.ones((2, 8, 8, 4), np.float32)


def convolution(images, **options):
    return lax.conv_general_dilated(images, KERNEL, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def of_host(a):
    return jax.pure_callback(np.copy, jax.ShapeDtypeStruct(a.shape, a.dtype), a)


def repeated(a):
    """While the sum of a is below 10."""
    return lax.while_loop(lambda a: jnp.sum(a) < 10, lambda a: a + (a @ B)[:, :3], a)


def counted(a):
    return lax.while_loop(lambda a: jnp.sum(a) < 10, lambda a: a + 1, a)


@jax.custom_jvp
def with_a_rule(a):
    return a @ B


with_a_rule.defjvp(lambda primals, tangents: (with_a_rule(*primals), with_a_rule(*tangents)))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda a: a @ B, PRODUCT),
        (lambda a: jax.jit(lambda a: a @ B)(a) + a @ B, 2 * PRODUCT),
        (with_a_rule, PRODUCT),
        (jax.grad(lambda a: jnp.sum((a @ B) ** 2)), 2 * PRODUCT),
        (jax.checkpoint(lambda a: a @ B), PRODUCT),
        (jax.vmap(lambda row: row @ B), PRODUCT),
        (lambda a: lax.scan(lambda total, _: (total + jnp.sum(a @ B), None), 0.0, length=9), 9 * PRODUCT),
        (lambda a: lax.fori_loop(0, 9, lambda _, a: a + (a @ B)[:, :3], a), 9 * PRODUCT),
        (
            lambda a: lax.cond(a[0, 0] > 0, lambda: a @ B, lambda: 2 * (a @ B) @ np.ones((7, 7))),
            PRODUCT + 2 * 5 * 7 * 7,
        ),
        (lambda a: jnp.sum(jnp.exp(a)), 0),
        (counted, 0),
        (repeated, np.inf),
        (of_host, np.inf),
        (lambda a: lax.scan(lambda carry, _: (of_host(carry), None), a, length=2), np.inf),
    ],
)
def test_products(function, expected):
    assert flop_count(jax.make_jaxpr(function)(A).jaxpr) == expected


def test_convolutions():
    forward = 2 * (2 * 4 * 4 * 6) * (3 * 3 * 4)
    assert flop_count(jax.make_jaxpr(convolution)(IMAGES).jaxpr) == forward
    grouped = functools.partial(
        lax.conv_general_dilated,
        rhs=KERNEL[:, :, :2],
        window_strides=(2, 2),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
    )
    assert flop_count(jax.make_jaxpr(grouped)(IMAGES).jaxpr) == forward / 2


def test_turns_of_a_loop_may_be_given_but_not_those_inside_of_it():
    def nested(a):
        return lax.while_loop(lambda a: jnp.sum(a) < 10, repeated, a)

    counts = [flop_count(jax.make_jaxpr(function)(A).jaxpr, turns=3) for function in (repeated, nested, counted)]
    assert counts == [3 * PRODUCT, np.inf, 0]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda a: jnp.exp(2 * a), 2 * A.size),
        (lambda a: lax.scan(lambda carry, _: (carry + 1, None), a, length=4)[0], 4 * A.size),
        (lambda a: a @ B + 1, PRODUCT / 10 + 35),
    ],
)
def test_everything_else_by_the_elements_of_its_results(function, expected):
    assert flop_count(jax.make_jaxpr(function)(A).jaxpr, per_element=10) == 10 * expected
