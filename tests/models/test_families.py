"""Properties shared by all architectures, published parameter counts, and peculiarities of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.models import blocks
from advjax.models.conv_small import ConvSmall
from advjax.models.custom_cnn import Custom1, Custom2, CustomCifar
from advjax.models.deepmind_resnet import DMPreActResNet18, DMWideResNet
from advjax.models.denoise import with_denoising
from advjax.models.keras_resnet import ResNet20v1
from advjax.models.layers import ImageClassifier
from advjax.models.lenet import LeNet5, Net62k
from advjax.models.preact_resnet import PreActResNet18
from advjax.models.resnet import ResNet18, ResNet50, ResNet101
from advjax.models.resnet9 import ResNet9
from advjax.models.vgg import VGG16
from advjax.models.wide_resnet import WideResNet
from advjax.training.partition import num_params
from advjax.types import UserError, Variables
from support.variables import trained_looking

GRAY, COLOR = (28, 28, 1), (32, 32, 3)


def shapes(model, image_shape):
    return jax.eval_shape(lambda: blocks.init(model, jax.random.key(0), image_shape))


@pytest.mark.parametrize(
    "model, image_shape, expected",
    [
        (LeNet5(), (32, 32, 1), 61_706),
        (LeNet5(), GRAY, 61_706),
        (Net62k(), COLOR, 62_006),
        (ConvSmall(), GRAY, 166_406),
        (PreActResNet18(), COLOR, 11_171_146),
        (PreActResNet18(final_norm=True), COLOR, 11_172_170),
        (ResNet18(), COLOR, 11_181_642),
        (ResNet18(), GRAY, 11_181_642),
        (ResNet50(), COLOR, 23_528_522),
        (ResNet101(), COLOR, 42_520_650),
        (ResNet18(num_classes=2), COLOR, 11_177_538),
        (ResNet50(num_classes=2), COLOR, 23_512_130),
        (ResNet101(num_classes=2), COLOR, 42_504_258),
        (ResNet18(stem="cifar"), COLOR, 11_173_962),
        (ResNet50(stem="cifar"), COLOR, 23_520_842),
        (ResNet101(stem="cifar"), COLOR, 42_512_970),
        (VGG16(), COLOR, 14_719_818),
        (VGG16(batch_norm=True), COLOR, 14_728_266),
        (VGG16(batch_norm=True, noise=(0.2, 0.1)), COLOR, 14_728_266),
        (VGG16(head="classic"), (224, 224, 3), 134_301_514),
        (ResNet20v1(), COLOR, 273_066),
        (Custom1(), GRAY, 398_986),
        (Custom1(pool_stride=2), GRAY, 411_274),
        (Custom2(), GRAY, 710_218),
        (CustomCifar(), COLOR, 400_586),
        (CustomCifar(pool_stride=2), COLOR, 433_354),
        (WideResNet(), COLOR, 36_479_194),
        (WideResNet(depth=34), COLOR, 46_160_474),
        (DMWideResNet(), COLOR, 36_479_194),
        (DMWideResNet(depth=70, width=16), COLOR, 266_796_506),
        (DMPreActResNet18(), COLOR, 12_548_426),
        (with_denoising(ResNet9()), COLOR, 6_588_490 + 279_808),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "apply") else str(value),
)
def test_numbers_of_parameters_are_the_published_ones(model, image_shape, expected):
    assert num_params(shapes(model, image_shape).params) == expected


def test_the_stages_of_preact_resnet18_have_the_published_numbers_of_parameters():
    params = shapes(PreActResNet18(), COLOR).params
    stages = [num_params(params[f"block_stage{i}"]) for i in range(1, 5)]
    assert stages == [147_968, 525_184, 2_098_944, 8_392_192]


TINY = {
    "lenet5": (LeNet5(num_classes=3, width=0.2), GRAY),
    "net62k": (Net62k(num_classes=3, width=0.2, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2)), COLOR),
    "conv_small": (ConvSmall(num_classes=3, width=0.2), (12, 12, 1)),
    "preact_resnet18": (PreActResNet18(num_classes=3, width=1 / 32), (8, 8, 3)),
    "resnet18": (ResNet18(num_classes=3, width=1 / 32, stage_sizes=(1, 2, 1, 1)), (32, 32, 1)),
    "resnet50": (ResNet50(num_classes=3, width=1 / 32, stage_sizes=(1, 2, 1, 1), stem="cifar"), (8, 8, 3)),
    "vgg16": (VGG16(num_classes=3, width=1 / 32), COLOR),
    "vgg16_bn": (VGG16(num_classes=3, width=1 / 32, batch_norm=True), COLOR),
    "vgg16_classic": (VGG16(num_classes=3, width=1 / 32, head="classic"), (32, 32, 3)),
    "resnet20v1": (ResNet20v1(num_classes=3, width=1 / 8), (8, 8, 3)),
    "custom1": (Custom1(num_classes=3, width=1 / 16), GRAY),
    "custom2": (Custom2(num_classes=3, width=1 / 32), GRAY),
    "custom_cifar": (CustomCifar(num_classes=3, width=1 / 16, pool_stride=2), COLOR),
    "preact_resnet18_raw": (PreActResNet18(num_classes=3, width=1 / 32, shortcut_input="raw"), (8, 8, 3)),
    "dm_wide_resnet": (DMWideResNet(num_classes=3, depth=10, width=0.2, padding=1), (6, 6, 3)),
    "dm_preact_resnet18": (DMPreActResNet18(num_classes=3, width=1 / 32), (8, 8, 3)),
    "wide_resnet": (WideResNet(num_classes=3, depth=10, width=0.2), (8, 8, 3)),
}
SLOW = {"preact_resnet18_raw", "vgg16_classic"}
"""Networks with the blocks of others, whose logits ``test_torch_weights`` compares, too."""
ORDER = np.array([2, 0, 3, 1])


@jax.jit(static_argnums=0)
def everything(model, variables, images):
    """Logits, those of the images in another order, and in train mode logits, state and gradient of a loss."""

    def loss(params):
        logits, state = blocks.apply(model, Variables(params, variables.model_state), images, train=True)
        return -jnp.mean(jax.nn.log_softmax(logits)[:, 0]), (logits, state)

    gradient, (logits, state) = jax.grad(loss, has_aux=True)(variables.params)
    # A loop, in which the network is compiled once.
    plain, reordered = jax.lax.map(blocks.logits_fn(model, variables), jnp.stack([images, images[ORDER]]))
    return plain, reordered, logits, state, gradient


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in TINY]
)
def tiny(request):
    model, image_shape = TINY[request.param]
    variables = trained_looking(model, image_shape)
    images = jax.random.uniform(jax.random.key(1), (4, *image_shape))
    return model, variables, images, everything(model, variables, images)


def test_logits_follow_their_images(tiny):
    _, _, _, (logits, reordered, *_) = tiny
    assert logits.shape == (4, 3) and logits.dtype == jnp.float32
    np.testing.assert_allclose(reordered, logits[ORDER], rtol=1e-4, atol=1e-6)
    assert np.ptp(logits, axis=0).max() > 1e-5, "the images must matter"


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_fresh_logits_follow_their_images(name):
    """With the network's own initial values; the fast tests draw others, which need no compiling."""
    model, image_shape = TINY[name]
    variables = blocks.init(model, jax.random.key(0), image_shape)
    images = jax.random.uniform(jax.random.key(1), (4, *image_shape))
    logits = jax.jit(lambda variables: blocks.apply(model, variables, images))(variables)
    assert np.isfinite(logits).all() and np.ptp(logits, axis=0).max() > 1e-5


def test_every_parameter_that_matters_has_a_finite_gradient(tiny):
    _, variables, _, (*_, gradient) = tiny
    assert jax.tree.structure(gradient) == jax.tree.structure(variables.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    # Biases before BatchNorm have none, and narrow layers may be dead; the head and the first kernel are not.
    first, last = (jax.tree.leaves(gradient[f"block_{tiny[0].block_names[i]}"]) for i in (0, -1))
    assert any(leaf.any() for leaf in first) and all(leaf.any() for leaf in last)


def test_train_mode_moves_all_batch_statistics_and_nothing_else(tiny):
    _, variables, _, (logits, _, train_logits, state, _) = tiny
    before, after = jax.tree.leaves(variables.model_state), jax.tree.leaves(state)
    assert jax.tree.structure(state) == jax.tree.structure(variables.model_state)
    if before:
        assert not np.allclose(train_logits, logits)
        assert sum(not np.array_equal(a, b) for a, b in zip(before, after, strict=True)) > 0.8 * len(before)
    else:
        np.testing.assert_allclose(train_logits, logits, rtol=1e-5, atol=1e-6)


def test_between_is_called_after_every_block_and_can_mix_where_the_model_says(tiny):
    model, variables, images, _ = tiny
    seen = []

    def between(name, features):
        seen.append(name)
        assert len(features) == len(images)
        return features[::-1]

    flipped = jax.eval_shape(lambda: blocks.apply(model, variables, images, between=between))
    assert flipped.shape == (4, 3)
    assert tuple(seen) == model.block_names and seen[-1] == "head"
    assert model.mixing_points[0] == "images" and set(model.mixing_points[1:]) < set(model.block_names)


def test_published_mixing_points():
    assert LeNet5().mixing_points == ("images", "conv1", "conv2", "fc1", "fc2")
    assert PreActResNet18().mixing_points == ("images", "stage1", "stage2")
    assert WideResNet().mixing_points == ("images", "stage1", "stage2")
    assert ResNet9().mixing_points == ("images", "conv1", "conv2", "res1", "conv3", "conv4", "res2")


def features_of(model, image_shape):
    seen = {}

    def between(name, features):
        seen[name] = features.shape[1:]
        return features

    variables = shapes(model, image_shape)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    jax.eval_shape(lambda v, images: blocks.apply(model, v, images, between=between), variables, images)
    return seen


def test_shapes_of_hidden_features():
    lenet = {"conv1": (14, 14, 6), "conv2": (5, 5, 16), "fc1": (120,), "fc2": (84,), "head": (10,)}
    assert features_of(LeNet5(), GRAY) == lenet
    small = {"conv1": (14, 14, 16), "conv2": (7, 7, 32), "fc1": (100,), "head": (10,)}
    assert features_of(ConvSmall(), GRAY) == small
    preact = list(features_of(PreActResNet18(), COLOR).values())
    assert preact == [(32, 32, 64), (32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512), (10,)]
    resnet = list(features_of(ResNet50(), (224, 224, 3)).values())
    assert resnet == [(56, 56, 64), (56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048), (10,)]
    vgg = list(features_of(VGG16(head="classic"), (224, 224, 3)).values())
    assert vgg[-4:] == [(7, 7, 512), (4096,), (4096,), (10,)]
    assert list(features_of(ResNet20v1(), COLOR).values())[-2:] == [(8, 8, 64), (10,)]
    assert list(features_of(Custom1(), GRAY).values())[:3] == [(9, 9, 32), (3, 3, 64), (1, 1, 64)]
    assert list(features_of(CustomCifar(), COLOR).values())[:3] == [(10, 10, 32), (3, 3, 64), (1, 1, 64)]
    assert list(features_of(Custom2(), GRAY).values())[:3] == [(14, 14, 64), (5, 5, 128), (1, 1, 128)]
    assert list(features_of(WideResNet(), COLOR).values())[:2] == [(32, 32, 16), (32, 32, 160)]


def test_lenet5_resizes_28_to_32_bilinearly_and_nothing_else():
    ramp = jnp.broadcast_to(jnp.arange(28.0)[None, :, None, None], (1, 28, 28, 1))
    resized = LeNet5().prepare(ramp)
    assert resized.shape == (1, 32, 32, 1)
    positions = np.clip((np.arange(32) + 0.5) * 28 / 32 - 0.5, 0, 27)
    np.testing.assert_allclose(resized[0, :, 5, 0], positions, rtol=1e-5, atol=1e-5)
    same = jnp.ones((1, 32, 32, 1))
    np.testing.assert_array_equal(LeNet5().prepare(same), same)


def test_input_is_normalized_inside_and_gray_images_are_repeated():
    images = jax.random.uniform(jax.random.key(0), (2, 4, 4, 3))
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    expected = (np.asarray(images) - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(ImageClassifier(mean=mean, std=std).prepare(images), expected, rtol=1e-5, atol=1e-6)
    gray = images[..., :1]
    np.testing.assert_array_equal(ResNet18().prepare(gray), jnp.tile(gray, 3))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: LeNet5(width=0), "width must be positive, got 0"),
        (lambda: ResNet18(stem="small"), "stem must be 'imagenet' or 'cifar', got 'small'"),
        (lambda: ResNet18(stage_sizes=(1, 2)), r"stage_sizes must be four numbers of at least 1, got \(1, 2\)"),
        (lambda: VGG16(head="gap"), "head must be 'linear' or 'classic', got 'gap'"),
        (lambda: VGG16(noise=(0.1,)), r"noise must be two numbers of at least 0 \(first, others\), got \(0.1,\)"),
        (lambda: PreActResNet18(shortcut_input="x"), "shortcut_input must be one of activation, raw, got 'x'"),
        (lambda: DMWideResNet(activation="gelu"), "activation must be one of relu, silu, got 'gelu'"),
        (lambda: DMPreActResNet18(stage_sizes=(2, 2)), r"stage_sizes must be four numbers .* got \(2, 2\)"),
        (lambda: WideResNet(depth=30), "depth must be 6n \\+ 4, such as 10, 28, or 34, got 30"),
        (
            lambda: with_denoising(ResNet9(), weighting="dot"),
            "weighting must be 'dot_product' or 'gaussian', got 'dot'",
        ),
        (
            lambda: shapes(with_denoising(LeNet5(), after=("fc1",)), GRAY),
            r"a denoising block needs features .* \(1, 120\)",
        ),
    ],
)
def test_impossible_models_are_refused(build, message):
    with pytest.raises(ValueError, match="^" + message):
        build()


@pytest.mark.parametrize(
    "model, size",
    [(LeNet5(), 8), (Net62k(), 8), (VGG16(), 16), (Custom1(), 4), (Custom2(), 4)],
)
def test_images_that_a_network_pools_to_nothing_are_refused(model, size):
    with pytest.raises(UserError, match=r"too small for this network: it pools them to \("):
        shapes(model, (size, size, 1))
