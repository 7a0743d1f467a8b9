"""Pooling made fast on CPU against ``lax.reduce_window``: values, gradients, ties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import PartitionSpec

from advjax.cpu import convolution
from advjax.cpu.fast_on_cpu import fast_on_cpu
from advjax.models.layers import global_average_pool

# (images, window, strides, padding)
CASES = {
    "two": ((3, 8, 6, 5), (2, 2), None, "VALID"),
    "odd_size": ((3, 9, 7, 5), (2, 2), (2, 2), "VALID"),
    "three": ((2, 9, 10, 3), (3, 3), (3, 3), "VALID"),
    "oblong": ((2, 9, 8, 3), (3, 2), None, "VALID"),
    "whole": ((2, 4, 4, 3), (4, 4), None, "VALID"),
    "one": ((2, 4, 4, 3), (1, 1), None, "VALID"),
    "overlapping": ((2, 9, 8, 3), (3, 3), (2, 2), "VALID"),
    "same": ((2, 9, 7, 3), (2, 2), (2, 2), "SAME"),
    "explicit": ((2, 9, 7, 3), (3, 3), (2, 2), ((1, 1), (1, 1))),
    "gaps": ((2, 9, 7, 3), (2, 2), (3, 3), "VALID"),
    "one_image": ((9, 8, 3), (2, 2), None, "VALID"),
}
ELEMENTWISE = {"two", "odd_size", "three", "oblong", "whole", "one", "one_image"}


def case(name, ties, dtype=np.float32):
    shape, window, strides, padding = CASES[name]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-1, 2, shape) if ties else rng.normal(size=shape), dtype)
    reference = lambda x: nn.max_pool(x, window, strides or window, padding)  # noqa: E731
    return x, fast_on_cpu(reference), reference


def value_and_gradient(pool, x):
    y, vjp = jax.vjp(pool, x)
    return y, *vjp(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


def assert_equal(actual, expected):
    """A maximum and its gradient move numbers and never round them (no position is in two windows): equal bits."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize(("name", "ties"), [("two", False), *((name, True) for name in CASES)])
def test_value_and_gradient_equal_reduce_window(name, ties):
    x, ours, reference = case(name, ties)
    assert ("custom_vjp" in str(jax.make_jaxpr(ours)(x))) == (name in ELEMENTWISE)
    expected = jax.jit(lambda x: value_and_gradient(reference, x))(x)
    assert_equal(jax.jit(lambda x: value_and_gradient(ours, x))(x), expected)


def test_without_jit():
    x, ours, reference = case("odd_size", ties=True)
    assert_equal(value_and_gradient(ours, x), value_and_gradient(reference, x))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_other_types(dtype):
    with jax.enable_x64(True):
        x, ours, reference = case("two", ties=True, dtype=dtype)
        expected = jax.jit(lambda x: value_and_gradient(reference, x))(x)
        assert_equal(jax.jit(lambda x: value_and_gradient(ours, x))(x), expected)


def test_gradient_goes_to_the_first_maximum():
    x = jnp.array([[0.0, 1.0], [1.0, 1.0]])[None, :, :, None]
    gradient = jax.grad(fast_on_cpu(lambda x: nn.max_pool(x, (2, 2), (2, 2)).sum()))(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0.0, 1.0], [0.0, 0.0]])


@pytest.mark.parametrize("name", ["two", "odd_size", "overlapping"])
def test_vmap_and_scan(name):
    x, ours, reference = case(name, ties=True)

    def climb(pool):
        def step(x, _):
            return x + 0.25 * jax.grad(lambda x: jnp.sum(pool(x) ** 2))(x), None

        return lambda x: lax.scan(step, x, length=3)[0]

    expected = jax.jit(climb(reference))(x)
    # Overlapping windows add up to four cotangents, in no fixed order.
    np.testing.assert_allclose(jax.jit(climb(ours))(x), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(climb(lambda x: ours(x[None]))))(x), expected, rtol=1e-6)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(check_vma):
    x, ours, reference = case("odd_size", ties=True)
    x = jnp.concatenate([x, x + 1])[:4]
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")

    def gradient(pool):
        return jax.grad(lambda x: jnp.sum(pool(x) ** 2))

    mapped = jax.shard_map(gradient(ours), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma)
    assert_equal(jax.jit(mapped)(x), gradient(reference)(x))


def test_exact_mode_is_reduce_window():
    x, ours, _ = case("two", ties=True)
    with convolution.exact():
        assert "custom_vjp" not in str(jax.make_jaxpr(ours)(x))


def test_global_average_pool():
    x = jnp.arange(2 * 3 * 4 * 5, dtype=jnp.float32).reshape(2, 3, 4, 5)
    np.testing.assert_allclose(global_average_pool(x), np.mean(x, axis=(1, 2)), rtol=1e-6)
    assert global_average_pool(x[0]).shape == (5,)
