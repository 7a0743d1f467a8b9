"""``fast_on_cpu``: the same function, whatever it is written with, and the same program on other platforms."""

import collections
import functools
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax
from jax.experimental import io_callback
from jax.sharding import PartitionSpec

from advjax.cpu import convolution
from advjax.cpu.fast_on_cpu import fast_on_cpu
from support.slow_equations import slow_equations

TOLERANCE = 5e-6


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X = normal(0, 3, 8, 9, 3)
K1, K2, K3 = normal(1, 3, 3, 3, 6) / 5, normal(2, 3, 3, 6, 6) / 8, normal(3, 6, 4)


def conv(x, kernel, layout=("NHWC", "HWIO", "NHWC"), **options):
    options = {"window_strides": (1, 1), "padding": "SAME"} | options
    return lax.conv_general_dilated(x, kernel, dimension_numbers=layout, **options)


def plain_lax(x):
    x = nn.max_pool(jax.nn.relu(conv(x, K1)), (2, 2), (2, 2))
    return jnp.mean(nn.avg_pool(jnp.tanh(conv(x, K2)), (2, 2), (2, 2)), (1, 2)) @ K3


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(6, (3, 3))(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(4)(nn.Conv(5, (3, 3), strides=2)(x).mean((1, 2)))


class Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
        self.head = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.norm(self.conv(x))), (2, 2), (2, 2))
        return self.head(x.mean((1, 2)))


def one_channels_first(image):
    """One image [channels, h, w], as Equinox computes."""
    layout = ("NCHW", "OIHW", "NCHW")
    x = conv(image[None], K1.transpose(3, 2, 0, 1), layout, padding=[(1, 1), (1, 1)])[0]
    x = lax.reduce_window(jax.nn.relu(x), -jnp.inf, lax.max, (1, 2, 2), (1, 2, 2), "VALID")
    x = conv(x[None], K2.transpose(3, 2, 0, 1), layout, window_strides=(2, 2))[0]
    return jnp.mean(x, (1, 2)) @ K3


def channels_first(x):
    return jax.vmap(one_channels_first)(x.transpose(0, 3, 1, 2))


def haiku():
    """A pure ``apply(params, rng, x)`` that looks up its parameters while it is traced, as Haiku's is."""
    frames = []

    def conv2d(name, x):
        params = frames[-1][name]
        return conv(x, params["w"]) + jnp.broadcast_to(params["b"], x.shape[:-1] + params["b"].shape)

    def apply(params, rng, x):
        frames.append(params)
        try:
            x = nn.max_pool(jax.nn.relu(conv2d("net/~/conv", x)), (2, 2), (2, 2), "SAME")
            return conv2d("net/~/conv_1", x).mean((1, 2)) @ K3
        finally:
            frames.pop()

    params = {
        "net/~/conv": {"w": K1, "b": np.ones(6, np.float32)},
        "net/~/conv_1": {"w": K2, "b": np.ones(6, np.float32)},
    }
    return lambda x: apply(params, None, x)


def linen():
    variables = Linen().init(jax.random.key(0), X)
    return lambda x: Linen().apply(variables, x)


NETWORKS = {
    "lax": lambda: plain_lax,
    "linen": linen,
    "nnx": Nnx,
    "channels_first": lambda: channels_first,
    "haiku": haiku,
}


def program(function, *args):
    return str(jax.make_jaxpr(lambda *args: function(*args))(*args))


def gradient(function):
    """Of a loss with respect to the first argument."""
    return jax.grad(lambda *args: jnp.sum(jnp.sin(function(*args))))


def assert_same(function, *args, tolerance=TOLERANCE):
    """Values and gradients, and nothing slow is left."""
    assert slow_equations(function, *args) and not slow_equations(fast_on_cpu(function), *args)

    def both(function):
        return jax.jit(lambda *args: (function(*args), gradient(function)(*args)))(*args)

    for actual, expected in zip(both(fast_on_cpu(function)), both(function), strict=True):
        assert actual.dtype == expected.dtype
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_any_library(name):
    network = NETWORKS[name]()
    if name == "haiku":  # its pooling is padded for an odd size
        assert slow_equations(fast_on_cpu(network), X) == {"reduce_window_max": 1}
        expected = jax.jit(gradient(network))(X)
        np.testing.assert_allclose(jax.jit(gradient(fast_on_cpu(network)))(X), expected, atol=1e-6)
    else:
        assert_same(network, X)


def test_gradient_steps_in_a_loop():
    def attack(function):
        return jax.jit(lambda x: lax.fori_loop(0, 3, lambda _, x: x + 0.1 * gradient(function)(x), x))(X)

    np.testing.assert_allclose(attack(fast_on_cpu(channels_first)), attack(channels_first), atol=1e-5)


def test_gradients_of_what_a_function_closes_over():
    def loss(kernels, transform):
        function = transform(lambda x: conv(jax.nn.relu(conv(x, kernels[0])), kernels[1]))
        return jnp.sum(jnp.sin(function(X)))

    expected = jax.jit(jax.grad(lambda kernels: loss(kernels, lambda function: function)))((K1, K2))
    actual = jax.jit(jax.grad(lambda kernels: loss(kernels, fast_on_cpu)))((K1, K2))
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=TOLERANCE * np.abs(e).max())


# --- rules of differentiation stay -----------------------------------------------------------------------------------


def test_relu_has_gradient_0_at_0():
    def function(x):
        return jax.nn.relu(conv(x, K1))

    x = jnp.zeros_like(X)
    assert not np.any(gradient(fast_on_cpu(function))(x)) and not np.any(gradient(function)(x))
    assert np.any(jax.grad(lambda x: jnp.sum(jnp.maximum(conv(x, K1), 0.0)))(x))  # what inlining would give


@jax.custom_vjp
def quantize(x):
    return jnp.round(4 * x) / 4


quantize.defvjp(lambda x: (quantize(x), None), lambda _, cotangent: (cotangent,))


@jax.custom_jvp
def edges(x):
    return jnp.sign(conv(x, K1))


@edges.defjvp
def edges_jvp(primals, tangents):
    return edges(*primals), conv(*tangents, K1)


@pytest.mark.parametrize("rule", [quantize, edges], ids=["custom_vjp", "custom_jvp"])
def test_straight_through_gradients_survive(rule):
    def function(x):
        y = rule(x)
        return conv(y, K2 if y.shape[-1] == 6 else K1)

    actual, expected = (jax.jit(gradient(f))(X) for f in (fast_on_cpu(function), function))
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(actual, expected, atol=1e-5)


# --- equations that contain others -----------------------------------------------------------------------------------


def layers(x, count):
    kernels = jnp.stack([K2 * (1 + number) for number in range(count)])
    return lax.scan(lambda x, kernel: (jnp.tanh(conv(x, kernel)), jnp.mean(x)), conv(x, K1), kernels)[0]


def branches(x):
    small = jnp.sum(x) < 0
    return lax.cond(small, lambda x: conv(x, K1), lambda x: jnp.tanh(conv(x, -K1)), x)


def switches(x):
    return lax.switch(
        jnp.int32(7), [lambda x: x, lambda x: conv(x, K1 @ K1[0, 0].T), jnp.sin], conv(x, K1 @ K1[0, 0].T)
    )


@jax.jit
def nested(x):
    y, total = jax.jit(lambda x: (jnp.tanh(conv(x, K1)), jnp.sum(x)))(x)
    return jax.jit(lambda y: conv(y, K2) * total)(y)


NESTED = {
    "jit": nested,
    "checkpoint": lambda x: jax.checkpoint(lambda x: jnp.tanh(conv(jnp.sin(conv(x, K1)), K2)))(x),
    "checkpoint_policy": jax.checkpoint(plain_lax, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False),
    "scan": functools.partial(layers, count=3),
    "cond": branches,
    "switch": switches,
    "vmap": lambda x: jax.vmap(lambda image: nested(image[None])[0])(x),
    "all": lambda x: lax.scan(lambda c, _: (jax.checkpoint(lambda c: branches(c)[..., :3])(c), None), x, length=2)[0],
}


@pytest.mark.parametrize("name", NESTED)
def test_inside(name):
    assert_same(NESTED[name], X, tolerance=2e-5)
    contained = name.split("_")[0]
    if contained in ("checkpoint", "scan", "cond"):
        assert re.search(rf"= (remat2|checkpoint|{contained})\[", program(fast_on_cpu(NESTED[name]), X))


def test_inside_while():
    """Both in the condition and in the body; only forward."""

    def function(x):
        small = lambda x: jnp.max(jnp.abs(conv(x, K1))) < 20  # noqa: E731
        return lax.while_loop(small, lambda x: x + conv(x, K1)[..., :3], x)

    assert slow_equations(function, X) and not slow_equations(fast_on_cpu(function), X)
    expected = jax.jit(function)(X)
    assert not np.array_equal(expected, X)
    np.testing.assert_allclose(jax.jit(fast_on_cpu(function))(X), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_inside_and_outside(check_vma):
    mesh = jax.make_mesh((3,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")

    def scaled(x):
        return plain_lax(x) * (2 + lax.pmean(plain_lax(x), "data"))

    def mapped(function):
        return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma)

    assert_same(mapped(scaled), X)
    expected = jax.jit(gradient(mapped(scaled)))(X)
    np.testing.assert_allclose(jax.jit(gradient(mapped(fast_on_cpu(scaled))))(X), expected, atol=1e-6)


def test_jit_with_donation_or_shardings_stays_as_it_is():
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for function in (jax.jit(plain_lax, donate_argnums=0), jax.jit(plain_lax, out_shardings=device)):
        assert program(fast_on_cpu(function), X) == program(function, X)


# --- what is not rewritten -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda x: conv(x.astype(jnp.bfloat16), K1.astype(jnp.bfloat16)),
        lambda x: conv(x, K1[:, :, :1], feature_group_count=3),
        lambda x: conv(x, K1, rhs_dilation=(2, 2)),
        lambda x: conv(x, K1, lhs_dilation=(2, 2), padding=[(1, 1), (1, 1)]),
        lambda x: nn.max_pool(x, (3, 3), (2, 2)),
        lambda x: nn.max_pool(x, (2, 2), (2, 2), "SAME"),
        lambda x: nn.avg_pool(x, (3, 3)),
        lambda x: jnp.sort(jax.nn.gelu(x) @ K1[0, 0]),
    ],
    ids=["bfloat16", "groups", "dilated", "transposed", "overlapping", "padded", "average", "dense"],
)
def test_other_equations_stay_as_they_are(function):
    assert program(fast_on_cpu(function), X) == program(function, X)


def test_exact_mode(monkeypatch):
    with convolution.exact():
        assert program(fast_on_cpu(plain_lax), X) == program(plain_lax, X)
    monkeypatch.setenv("ADVJAX_EXACT_CONVOLUTIONS", "1")
    assert program(fast_on_cpu(plain_lax), X) == program(plain_lax, X)


def test_twice_is_once():
    once = fast_on_cpu(plain_lax)
    assert program(fast_on_cpu(once), X) == program(once, X) != program(plain_lax, X)


@pytest.mark.parametrize("function", [plain_lax, channels_first], ids=["lax", "channels_first"])
def test_programs_for_tpus_are_the_same(function):
    """Up to selections by a constant and a forward pooling that is not used, which no compiled program contains."""
    actual, expected = operations(fast_on_cpu(function), "tpu"), operations(function, "tpu")
    assert expected["convolution"] and actual["convolution"] == expected["convolution"]
    assert not expected - actual and actual - expected <= collections.Counter(maximum=1, broadcast_in_dim=1)


def operations(function, platform):
    """How often each operation occurs in a program for another platform."""
    traced = jax.jit(lambda x: (function(x), gradient(function)(x))).trace(X)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    found = collections.Counter(re.findall(r"stablehlo\.(\w+)", text))
    for name in ("constant", "case", "return"):
        del found[name]
    return found


@pytest.mark.parametrize("platform", ["cuda", "rocm"])
def test_max_pooling_is_elementwise_on_gpus(platform):
    """Convolutions stay as they are; the program decides, not the device of this process."""
    own, fast = operations(plain_lax, platform), operations(fast_on_cpu(plain_lax), platform)
    assert own["select_and_scatter"] and not fast["select_and_scatter"]
    assert fast["convolution"] == own["convolution"]


# --- uses ------------------------------------------------------------------------------------------------------------


def test_forward_mode_inside():
    def function(x):
        y, slope = jax.jvp(plain_lax, (x,), (jnp.cos(x),))
        image = x[:1, :2, :2]
        hessian = jax.hessian(lambda image: jnp.sum(jnp.tanh(conv(image, K1))))(image)
        return y + slope + jnp.sum(hessian**2)

    expected = jax.jit(gradient(function))(X)
    np.testing.assert_allclose(jax.jit(fast_on_cpu(function))(X), jax.jit(function)(X), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.jit(gradient(fast_on_cpu(function)))(X), expected, atol=1e-4)


def test_forward_mode_outside_needs_the_exact_mode():
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(fast_on_cpu(plain_lax), (X,), (X,))
    with convolution.exact():
        actual = jax.jvp(fast_on_cpu(plain_lax), (X,), (X,))
    np.testing.assert_array_equal(actual, jax.jvp(plain_lax, (X,), (X,)))


def test_trees_keys_and_keywords():
    def function(parts, *, rng, scale=2.0, nothing=None):
        noise = jax.random.normal(rng, parts["x"].shape)
        return {"y": conv(parts["x"] + noise, K1) * scale, "none": nothing, "count": parts["count"] + 1}

    arguments = {"x": X, "count": jnp.int32(3)}
    actual = fast_on_cpu(function)(arguments, rng=jax.random.key(0))
    expected = function(arguments, rng=jax.random.key(0))
    assert jax.tree.structure(actual) == jax.tree.structure(expected) and actual["count"] == 4
    np.testing.assert_allclose(actual["y"], expected["y"], atol=1e-5)


def test_callbacks_are_called_as_before():
    seen = []

    def function(x):
        io_callback(lambda number: seen.append(int(number)), None, len(x), ordered=True)
        y = conv(x, K1)
        io_callback(lambda number: seen.append(int(number)), None, y.shape[-1], ordered=True)
        return y + jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), jnp.float32), x[0, 0, 0, 0])

    for call in (fast_on_cpu(function), jax.jit(fast_on_cpu(function))):
        result = call(X)
        jax.effects_barrier()
        assert seen == [3, 6]
        seen.clear()
        np.testing.assert_allclose(result, conv(X, K1) + np.sin(X[0, 0, 0, 0]), atol=1e-5)


def test_what_a_function_reads_is_read_in_every_call():
    weights = {"kernel": K1}
    function = fast_on_cpu(lambda x: conv(x, weights["kernel"]))
    first = function(X)
    weights["kernel"] = 2 * K1
    np.testing.assert_allclose(function(X), 2 * first, atol=1e-5)


def test_calls_outside_jit_compile_once(caplog):
    function = fast_on_cpu(jax.jit(plain_lax))
    first = function(X)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(function(X), first)
        assert not [record for record in caplog.records if "Compiling" in record.getMessage()]
        jax.jit(lambda x: plain_lax(x) + 1)(X)
        assert [record for record in caplog.records if "Compiling" in record.getMessage()]
