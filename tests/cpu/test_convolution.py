"""Convolutions made fast on CPU against ``lax.conv_general_dilated``: values, gradients, transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import PartitionSpec

from advjax.cpu import convolution
from advjax.cpu.fast_on_cpu import fast_on_cpu
from advjax.cpu.winograd import winograd
from advjax.models import layers

LAYOUT = ("NHWC", "HWIO", "NHWC")

# (images, kernel rows x columns x features, stride, padding): every algorithm, odd and non-square sizes, even kernels.
CASES = {
    "lenet_first": ((3, 14, 11, 1), (5, 5, 6), 1, "VALID"),
    "lenet_same": ((2, 7, 9, 1), (5, 5, 16), 1, "SAME"),
    "lenet_second": ((3, 14, 14, 6), (5, 5, 16), 1, "VALID"),
    "one_pixel_out": ((2, 5, 5, 6), (5, 5, 12), 1, "VALID"),
    "few_to_many": ((2, 9, 12, 3), (3, 3, 32), 1, "SAME"),
    "few_strided": ((2, 13, 8, 2), (3, 3, 4), 2, "SAME"),
    "many": ((2, 9, 12, 20), (3, 3, 24), 1, "SAME"),
    "many_strided": ((2, 9, 12, 20), (3, 3, 24), 2, "SAME"),
    "torch_strided": ((2, 9, 12, 20), (3, 3, 24), 2, [(1, 1), (1, 1)]),
    "uneven_pads": ((2, 9, 12, 20), (3, 3, 24), 1, [(2, 0), (0, 1)]),
    "pointwise": ((2, 9, 12, 20), (1, 1, 24), 1, "SAME"),
    "pointwise_strided": ((2, 9, 12, 20), (1, 1, 24), 2, "VALID"),
    "even_kernel": ((2, 11, 12, 20), (8, 8, 4), 1, "SAME"),
    "even_kernel_strided": ((2, 11, 16, 3), (8, 8, 4), 2, "SAME"),
    "seven": ((2, 15, 16, 3), (7, 7, 64), 2, "SAME"),
    "flat_kernel": ((2, 9, 12, 10), (1, 5, 12), 1, "SAME"),
    "winograd_filter": ((2, 5, 7, 64), (3, 3, 72), 1, "SAME"),
    "winograd": ((2, 5, 7, 128), (3, 3, 130), 1, "SAME"),
    "winograd_valid": ((3, 6, 8, 128), (3, 3, 128), 1, "VALID"),
    "heavy_kernel": ((1, 4, 4, 128), (3, 3, 128), 1, "SAME"),
    "wide_strided": ((2, 9, 12, 64), (3, 3, 72), 2, "SAME"),
    "wide_strided_valid": ((2, 12, 9, 64), (3, 2, 64), 3, "VALID"),
    "padding_too_wide": ((2, 9, 12, 4), (3, 3, 5), 1, [(4, 3), (3, 3)]),
}
# Sums of up to 2000 products in another order: rounding of 1e-6 of the largest entry.  Winograd's transforms have
# entries from 1/24 to 8, which costs about one digit.
TOLERANCE, WINOGRAD_TOLERANCE = 5e-6, 5e-5


def case(name, dtype=np.float32):
    images, (rows, columns, features), stride, padding = CASES[name]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=images), dtype)
    fan_in = rows * columns * images[-1]
    kernel = jnp.asarray(rng.normal(size=(rows, columns, images[-1], features)) / np.sqrt(fan_in), dtype)

    def conv(x, kernel):
        return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)

    tolerance = WINOGRAD_TOLERANCE if name.startswith("winograd") else TOLERANCE
    return x, kernel, fast_on_cpu(conv), conv, tolerance


def value_and_gradients(conv, x, kernel):
    y, vjp = jax.vjp(conv, x, kernel)
    return y, *vjp(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


def assert_close(actual, expected, tolerance):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * max(float(jnp.abs(e).max()), 1e-30))


def uses_custom_rule(conv, *args):
    return "custom_vjp" in str(jax.make_jaxpr(lambda *args: conv(*args))(*args))  # a fresh function: nothing is cached


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients_equal_lax(name):
    x, kernel, ours, reference, tolerance = case(name)
    assert uses_custom_rule(ours, x, kernel) == (name != "padding_too_wide")
    expected = jax.jit(lambda x, k: value_and_gradients(reference, x, k))(x, kernel)
    assert_close(jax.jit(lambda x, k: value_and_gradients(ours, x, k))(x, kernel), expected, tolerance)


@pytest.mark.parametrize("batch", [8, 9, 24])
@pytest.mark.parametrize("name", ["many", "many_strided", "uneven_pads", "lenet_second"])
def test_the_filter_gradient_of_a_large_batch_is_summed_over_pieces(name, batch, monkeypatch):
    monkeypatch.setattr(convolution, "_UNDIVIDED", 1)
    monkeypatch.setattr(convolution, "_PIECE", 1)
    x, kernel, ours, reference, tolerance = case(name)
    x = jnp.concatenate([x * (number + 1) / 10 for number in range(10)])[:batch]
    jax.clear_caches()  # The limits are read when a layer is traced.
    assert ("scan" in str(jax.make_jaxpr(jax.grad(lambda k: jnp.sum(ours(x, k))))(kernel))) == (batch > 8)
    expected = jax.jit(lambda x, k: value_and_gradients(reference, x, k))(x, kernel)
    assert_close(jax.jit(lambda x, k: value_and_gradients(ours, x, k))(x, kernel), expected, tolerance)
    jax.clear_caches()


def test_cases_cover_every_algorithm():
    plans = set()
    for images, (rows, columns, features), stride, padding in CASES.values():
        strides, kernel = (stride, stride), (rows, columns, images[-1], features)
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(images[1:3], kernel[:2], strides, padding)
        plans |= set(
            zip(("forward", "input", "filter"), convolution._plan(images, kernel, strides, padding), strict=True)
        )
    assert plans == {
        *(("forward", name) for name in ("lax", "matmul", "winograd")),
        *(("input", name) for name in ("flip", "matmul")),
        *(("filter", name) for name in ("swap", "matmul", "taps", "winograd")),
    }


def test_patches_that_would_not_fit_in_memory_are_not_built():
    small = convolution._plan((2, 224, 224, 3), (7, 7, 3, 8), (2, 2), ((3, 3), (3, 3)))
    large = convolution._plan((512, 224, 224, 3), (7, 7, 3, 8), (2, 2), ((3, 3), (3, 3)))
    assert small == ("matmul", "matmul", "swap") and large == ("lax", "lax", "swap")


@pytest.mark.parametrize("algorithm", ["matmul", "sum_over_taps", "_winograd", "_correlate"])
def test_algorithms_are_exact_in_double_precision(algorithm):
    with jax.enable_x64(True):
        x, kernel, _, reference, _ = case("many", np.float64)
        geometry = (1, 1), ((1, 1), (1, 1))
        y, vjp = jax.vjp(reference, x, kernel)
        if algorithm == "_correlate":
            actual, expected = convolution._correlate(x, jnp.sin(y), kernel.shape, *geometry), vjp(jnp.sin(y))[1]
        else:
            actual, expected = getattr(convolution, algorithm)(x, kernel, *geometry), y
        assert actual.dtype == jnp.float64
        assert_close(actual, expected, 1e-13)


def test_a_kernel_that_few_pieces_share_is_not_transformed():
    """The last layers of a ResNet18 at small batches: 512 channels on 4x4 features."""
    pads, kernel = ((1, 1), (1, 1)), (3, 3, 512, 512)
    assert convolution._plan((32, 4, 4, 512), kernel, (1, 1), pads) == ("lax", "matmul", "swap")
    assert set(convolution._plan((64, 4, 4, 512), kernel, (1, 1), pads)) == {"winograd", "flip"}
    assert set(convolution._plan((32, 4, 4, 256), (3, 3, 256, 256), (1, 1), pads)) == {"winograd", "flip"}


def test_a_kernel_that_stays_the_same_is_transformed_for_fewer_pieces():
    """But not for so few that reading it takes longer, nor where most of a piece lies outside of the map."""
    geometry = (1, 1), ((1, 1), (1, 1))

    def plan(batch, size, repeated=True):
        return convolution._plan((batch, size, size, 512), (3, 3, 512, 512), *geometry, repeated)

    assert plan(32, 4) == plan(16, 4) == plan(64, 4, False) == ("winograd", "flip", "winograd")
    assert plan(15, 4) == plan(32, 2) == plan(32, 4, False) == ("lax", "matmul", "swap")


def test_what_is_traced_as_the_body_of_a_loop_is_planned_as_such(monkeypatch):
    """Also a jitted function that has been rewritten outside of one before."""
    planned, plan = [], convolution._plan

    def spy(*args):
        planned.append(args[-1])
        return plan(*args)

    monkeypatch.setattr(convolution, "_plan", spy)
    x, kernel = np.ones((2, 9, 13, 17), np.float32), np.ones((3, 3, 17, 5), np.float32)
    inner = jax.jit(lambda x: lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT))

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(fast_on_cpu(inner)(x) ** 2))(x)

    jax.make_jaxpr(lambda x: gradient(x))(x)
    assert planned and not any(planned)
    planned.clear()
    with convolution.repeated():
        jax.make_jaxpr(lambda x: gradient(x))(x)
    assert planned and all(planned)


@pytest.mark.parametrize(("batch", "groups"), [(9, [(3, 3)]), (8, [(4, 2)]), (7, [(3, 3)]), (3, [])])
def test_winograd_in_groups_of_images(monkeypatch, batch, groups):
    """Few enough to stay in the cache, the last one padded; the values and gradients do not change."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, 8, 8, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 4, 6)) / 6, jnp.float32)

    def conv(x, kernel):
        return winograd(x, kernel, ((1, 1), (1, 1)))

    found = {}
    for images in (100, 3):
        monkeypatch.setattr("advjax.cpu.winograd._CACHED", images * 36 * 4 * (4 + 6))
        found[images] = value_and_gradients(conv, x, kernel)
    assert_close(found[3], found[100], TOLERANCE)
    scans = [eqn for eqn in jax.make_jaxpr(lambda x: conv(x, kernel))(x).eqns if eqn.primitive.name == "scan"]
    assert [(eqn.params["length"], eqn.invars[-1].aval.shape[1]) for eqn in scans] == groups


def test_winograd_with_every_padding():
    x, kernel, *_ = case("many")
    for padding in (((0, 0), (0, 0)), ((1, 2), (2, 0))):
        expected = lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=LAYOUT)
        assert_close(jax.jit(winograd, static_argnums=2)(x, kernel, padding), expected, WINOGRAD_TOLERANCE)


def test_without_jit():
    x, kernel, ours, _, tolerance = case("many_strided")
    compiled = jax.jit(lambda x, k: value_and_gradients(ours, x, k))(x, kernel)
    assert_close(value_and_gradients(ours, x, kernel), compiled, tolerance)


@pytest.mark.parametrize("name", ["lenet_second", "winograd"])
def test_vmap_over_images_and_kernels(name):
    x, kernel, ours, reference, tolerance = case(name)
    kernels = jnp.stack([kernel, kernel[::-1]])

    def single(conv):
        return lambda image, kernel: value_and_gradients(conv, image[None], kernel)

    for axes in ((0, None), (None, 0)):
        args = (x, kernel) if axes[1] is None else (x[0], kernels)
        expected = jax.jit(jax.vmap(single(reference), axes))(*args)
        assert_close(jax.jit(jax.vmap(single(ours), axes))(*args), expected, tolerance)


@pytest.mark.parametrize("name", ["lenet_second", "many", "winograd"])
def test_inside_scan(name):
    x, kernel, ours, reference, tolerance = case(name)

    def descend(conv):
        def step(carry, _):
            gradients = jax.grad(lambda x, k: jnp.sum(jnp.tanh(conv(x, k))), (0, 1))(*carry)
            return jax.tree.map(lambda value, gradient: value - 0.1 * gradient, carry, gradients), None

        return jax.jit(lambda carry: lax.scan(step, carry, length=3)[0])

    assert_close(descend(ours)((x, kernel)), descend(reference)((x, kernel)), 3 * tolerance)


def test_reverse_over_reverse():
    x, kernel, ours, reference, tolerance = case("lenet_second")

    def penalty(conv):
        return lambda x, k: jnp.sum(jax.grad(lambda x: jnp.sum(jnp.tanh(conv(x, k))))(x) ** 2)

    expected = jax.jit(jax.grad(penalty(reference), (0, 1)))(x, kernel)
    assert_close(jax.jit(jax.grad(penalty(ours), (0, 1)))(x, kernel), expected, 5 * tolerance)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("name", ["lenet_second", "many", "winograd"])
def test_shard_map(name, check_vma):
    """A batch over four devices and a replicated kernel: gradients by images, by a replicated and by a cast kernel."""
    x, kernel, ours, reference, tolerance = case(name)
    x = jnp.concatenate([x, 2 * x, -0.5 * x])[:4]
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    replicated, sharded = PartitionSpec(), PartitionSpec("data")

    def loss(conv):
        return lambda x, kernel: jnp.sum(jnp.tanh(conv(x, kernel)))

    def replica(x, kernel):
        def step(x, _):
            return x + 0.1 * jax.grad(loss(ours))(x, kernel), None

        attacked, _ = lax.scan(step, x, length=2)
        local = jax.grad(loss(ours), 1)(x, lax.pcast(kernel, "data", to="varying") if check_vma else kernel)
        summed = jax.grad(loss(ours), 1)(x, kernel) if check_vma else lax.psum(local, "data")
        return attacked, lax.psum(local, "data"), summed

    attacked, gradient = x, jax.jit(jax.grad(loss(reference), (0, 1)))
    for _ in range(2):
        attacked = attacked + 0.1 * gradient(attacked, kernel)[0]
    kernel_bar = gradient(x, kernel)[1]
    out_specs = (sharded, replicated, replicated)
    mapped = jax.shard_map(replica, mesh=mesh, in_specs=(sharded, replicated), out_specs=out_specs, check_vma=check_vma)
    assert_close(jax.jit(mapped)(x, kernel), (attacked, kernel_bar, kernel_bar), 3 * tolerance)


def test_shard_map_of_pieces(monkeypatch):
    """Two pieces of an image for each of four devices, and a replicated kernel."""
    for limit in ("_UNDIVIDED", "_PIECE", "_SMALLEST_PIECE"):
        monkeypatch.setattr(convolution, limit, 1)
    x, kernel, ours, reference, tolerance = case("many")
    x = jnp.concatenate([x, 2 * x, -0.5 * x, 3 * x])
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    jax.clear_caches()  # The limits are read when a layer is traced.

    def gradient(conv):
        return jax.grad(lambda x, kernel: jnp.sum(jnp.tanh(conv(x, kernel))), 1)

    specs = (PartitionSpec("data"), PartitionSpec())
    mapped = jax.shard_map(gradient(ours), mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    assert_close(jax.jit(mapped)(x, kernel), gradient(reference)(x, kernel), tolerance)
    jax.clear_caches()


@pytest.mark.parametrize("name", CASES)
def test_exact_mode_traces_the_program_of_lax(name):
    x, kernel, ours, reference, _ = case(name)
    with convolution.exact():
        actual = jax.make_jaxpr(lambda x, k: value_and_gradients(ours, x, k))(x, kernel)
    expected = jax.make_jaxpr(lambda x, k: value_and_gradients(reference, x, k))(x, kernel)
    assert str(actual) == str(expected)
    assert convolution.uses_exact_convolutions() is False


def test_exact_mode_is_lax_bit_for_bit():
    x, kernel, ours, reference, _ = case("winograd")
    with convolution.exact():
        actual = jax.jit(lambda x, k: value_and_gradients(ours, x, k))(x, kernel)
    expected = jax.jit(lambda x, k: value_and_gradients(reference, x, k))(x, kernel)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, e)


def test_exact_mode_by_environment(monkeypatch):
    x, kernel, ours, *_ = case("many")
    monkeypatch.setenv("ADVJAX_EXACT_CONVOLUTIONS", "1")
    assert not uses_custom_rule(ours, x, kernel)
    monkeypatch.setenv("ADVJAX_EXACT_CONVOLUTIONS", "0")
    assert uses_custom_rule(ours, x, kernel)


def test_exact_mode_allows_forward_mode():
    x, kernel, ours, reference, _ = case("lenet_second")
    with convolution.exact():
        actual = jax.jvp(lambda x: ours(x, kernel), (x,), (x,))
    assert_close(actual, jax.jvp(lambda x: reference(x, kernel), (x,), (x,)), TOLERANCE)


@pytest.mark.parametrize(
    "options",
    [
        {"feature_group_count": 2},
        {"kernel_dilation": 2},
        {"input_dilation": 2},
        {"dtype": jnp.bfloat16},
        {"kernel_size": (3,)},
        {"kernel_size": (3, 3, 3)},
        {"padding": [(0, 0), (4, 4)]},
    ],
    ids=str,
)
def test_what_is_not_supported_is_the_program_of_lax(options):
    options = {"kernel_size": (3, 3), "padding": 1} | options
    x = jnp.ones((2, *(8,) * len(options["kernel_size"]), 4))
    module = nn.Conv(6, **options)
    variables = jax.eval_shape(module.init, jax.random.key(1), x)
    assert program(fast_on_cpu(module.apply), variables, x) == program(module.apply, variables, x)


def program(function, *args):
    return str(jax.make_jaxpr(lambda *args: function(*args))(*args))


def test_every_precision_is_that_of_float32():
    x, kernel, ours, reference, tolerance = case("many")
    for precision in ("bfloat16", "tensorfloat32", "highest"):
        with jax.default_matmul_precision(precision):
            assert uses_custom_rule(ours, x, kernel)
            assert_close(value_and_gradients(ours, x, kernel), value_and_gradients(reference, x, kernel), tolerance)


class _TwoConvs(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (5, 5), padding="CIRCULAR", use_bias=False)(x))
        return nn.Conv(5, (3, 3), strides=2)(x)


def test_linen_conv():
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, 3))
    reference = _TwoConvs().apply
    variables, ours = jax.jit(_TwoConvs().init)(jax.random.key(1), x), fast_on_cpu(reference)
    assert uses_custom_rule(ours, variables, x) and not uses_custom_rule(reference, variables, x)
    for images in (x, x[0]):  # linen gives one image a batch of its own
        expected = jax.jit(reference)(variables, images)
        assert_close(jax.jit(ours)(variables, images), expected, TOLERANCE)


def test_torch_initialization():
    module = layers.conv(64, 5, use_bias=True, fan_in=5 * 5 * 4)
    params = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 4)))["params"]
    assert params["kernel"].shape == (5, 5, 4, 64) and params["bias"].shape == (64,)
    for values, least in ((params["kernel"], 0.099), (params["bias"], 0.08)):
        assert least < float(jnp.abs(values).max()) <= 0.1  # uniform in ±1/sqrt(100)
    np.testing.assert_allclose(jnp.var(params["kernel"]), 0.1**2 / 3, rtol=0.05)
