"""Random self-ensemble: noise layers that the "noise" stream enables."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.models import blocks
from advjax.models.layers import GaussianNoise
from advjax.models.lenet import Net62k
from advjax.models.vgg import VGG16

SHAPE = (32, 32, 3)


def test_the_layer_adds_normal_noise_of_the_standard_deviation_and_only_with_a_key():
    x = jnp.full((100, 100), 3.0)
    layer = GaussianNoise(0.2)
    np.testing.assert_array_equal(layer.apply({}, x), x)
    noise = layer.apply({}, x, rngs={"noise": jax.random.key(0)}) - x
    assert abs(float(noise.mean())) < 0.01 and abs(float(noise.std()) - 0.2) < 0.01
    other = layer.apply({}, x, rngs={"noise": jax.random.key(1)}) - x
    assert abs(float(jnp.corrcoef(noise.ravel(), other.ravel())[0, 1])) < 0.05


@pytest.fixture(scope="module")
def net62k():
    plain = Net62k(width=0.2)
    return plain, blocks.init(plain, jax.random.key(0), SHAPE), jax.random.uniform(jax.random.key(1), (4, *SHAPE))


def test_equal_keys_give_equal_logits_and_others_do_not(net62k):
    _, variables, images = net62k
    noisy = blocks.stochastic_logits_fn(Net62k(width=0.2, noise=0.2), variables)
    first, again, other = (noisy(images, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_without_a_key_or_without_noise_it_is_the_plain_net_bit_for_bit(net62k):
    plain, variables, images = net62k
    expected = blocks.apply(plain, variables, images)
    np.testing.assert_array_equal(blocks.apply(Net62k(width=0.2, noise=0.2), variables, images), expected)
    silent = blocks.stochastic_logits_fn(Net62k(width=0.2, noise=0.0), variables)
    np.testing.assert_array_equal(silent(images, jax.random.key(3)), expected)


def noise_added(model, images):
    """Standard deviation of what every noise layer adds, in order."""
    added = []

    def interceptor(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if isinstance(context.module, GaussianNoise):
            added.append(jnp.std(result - args[0]))
        return result

    @jax.jit
    def run(variables, images):
        with nn.intercept_methods(interceptor):
            blocks.apply(model, variables, images, rngs={"noise": jax.random.key(0)})
        return list(added)

    return run(blocks.init(model, jax.random.key(0), SHAPE), images)


def test_noise_is_in_front_of_both_convolutions_of_net62k(net62k):
    np.testing.assert_allclose(noise_added(Net62k(width=0.2, noise=0.2), net62k[2]), [0.2, 0.2], rtol=0.1)


def test_vgg16_has_the_initial_noise_first_and_the_inner_noise_elsewhere():
    images = jax.random.uniform(jax.random.key(1), (16, *SHAPE))
    found = noise_added(VGG16(width=1 / 32, batch_norm=True, noise=(0.2, 0.1)), images)
    np.testing.assert_allclose(found, [0.2] + [0.1] * 12, rtol=0.15)


def num_draws(model, train, with_key):
    """How often the traced network draws random numbers."""

    def logits(variables, images, key):
        return blocks.apply(model, variables, images, train=train, rngs={"noise": key} if with_key else None)

    variables = jax.eval_shape(lambda: blocks.init(model, jax.random.key(0), SHAPE))
    traced = jax.make_jaxpr(logits)(variables, jnp.zeros((2, *SHAPE)), jax.random.key(0))
    return str(traced).count("random_bits[")


@pytest.mark.parametrize("train", [False, True])
def test_the_key_alone_decides_whether_noise_is_drawn(train):
    model = VGG16(width=1 / 32, batch_norm=True, noise=(0.2, 0.1))
    assert num_draws(model, train, with_key=False) == 0
    assert num_draws(model, train, with_key=True) > 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 32, 32, 3), np.uint8), "got uint8: convert 8-bit images with images.astype"),
        (np.zeros((2, 32, 32, 3), bool), "must be floating point"),
        (np.zeros((2, 32, 32, 3), np.int32), "must be floating point"),
        (np.zeros((32, 32, 3), np.float32), r"shape \[n, height, width, channels\], got \(32, 32, 3\)"),
        (np.zeros((2, 3072), np.float32), r"got \(2, 3072\)"),
    ],
)
def test_images_of_another_kind_are_refused(net62k, images, message):
    model, variables, _ = net62k
    for call in (
        lambda: blocks.logits_fn(model, variables)(images),
        lambda: jax.jit(blocks.logits_fn(model, variables))(images),
        lambda: blocks.stochastic_logits_fn(model, variables)(images, jax.random.key(0)),
        lambda: blocks.apply(model, variables, images, train=True),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_inference_functions_take_a_key_if_the_model_is_stochastic(net62k, noise):
    _, variables, images = net62k
    model = Net62k(width=0.2, noise=noise)
    function, stochastic = blocks.inference_fn(model, variables, SHAPE)
    assert stochastic == (noise > 0)
    expected = blocks.apply(model, variables, images, rngs={"noise": jax.random.key(3)} if stochastic else None)
    np.testing.assert_array_equal(function(images, jax.random.key(3)) if stochastic else function(images), expected)
