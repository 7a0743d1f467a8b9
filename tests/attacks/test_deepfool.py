"""DeepFool against closed forms and against what Foolbox did on frozen networks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks import deepfool
from advjax.attacks.deepfool import NUDGE
from support import attack_models as am
from support import recorded

pytestmark = pytest.mark.optimized

MAKE = {"linf": attacks.linf, "l2": attacks.l2}
KEY = jax.random.key(0)
every_norm = pytest.mark.parametrize("norm", MAKE)


@every_norm
def test_linear_binary_model_takes_one_step_and_the_overshoot(norm):
    known = am.known_distance(norm)
    model = am.Linear(known.model.weights[..., :2], known.model.bias[:2])
    attack = deepfool(MAKE[norm](math.inf), overshoot=0.02)
    result = attack(model, known.images, known.labels, KEY)
    assert np.all(result.success)
    assert np.all(result.steps == 2)
    np.testing.assert_allclose(result.distance, 1.02 * (known.epsilon + NUDGE), rtol=1e-4)


@every_norm
@pytest.mark.parametrize("num_classes", [3, 4, 12])
def test_linear_model_is_left_by_the_nearest_boundary(norm, num_classes):
    images = am.gray_images()
    model = am.random_linear(images, num_classes)
    labels = np.argmax(model(images), axis=-1)
    bounds = am.lower_bounds(model, images, labels, norm)
    result = deepfool(MAKE[norm](math.inf), num_candidates=num_classes)(model, images, labels, KEY)
    assert np.all(result.success)
    np.testing.assert_allclose(result.distance, 1.02 * (bounds + NUDGE), rtol=1e-3)
    fewer = deepfool(MAKE[norm](math.inf), num_candidates=2)(model, images, labels, KEY)
    assert np.all(fewer.distance >= result.distance * (1 - 1e-4))


@every_norm
def test_smooth_model_near_the_optimum(norm):
    """PGD, with many radii, rarely finds a smaller perturbation."""
    model, images = am.smooth_net(), am.gray_images()
    labels = np.argmax(model(images), axis=-1)
    result = deepfool(MAKE[norm](math.inf))(model, images, labels, KEY)
    assert np.all(result.success)
    shares = np.geomspace(0.5, 1, 12)

    def fooled(radius, image, label, key):
        threat_model = MAKE[norm](radius)
        attack = attacks.pgd(threat_model, num_steps=40, step_size=radius / 8, loss=attacks.margin, random_start=False)
        return attack(model, image[None], label[None], key[None]).success[0]

    each_image = jax.vmap(fooled)
    radii = shares[:, None] * result.distance
    found = jax.jit(jax.vmap(each_image, (0, None, None, None)))(radii, images, labels, am.keys_of(range(len(images))))
    assert np.all(found[-1])
    smallest = shares[np.argmax(found, axis=0)]
    assert np.mean(smallest >= 0.8) > 0.8


def test_wrong_label_is_left_alone_and_no_gradient_is_no_step():
    images = am.gray_images()
    model = am.random_linear(images, 3)
    labels = np.argmax(model(images), axis=-1)
    wrong = deepfool(attacks.l2(math.inf))(model, images, (labels + 1) % 3, KEY)
    assert np.all(wrong.distance == 0) and np.all(wrong.success) and np.all(wrong.steps == 1)

    def flat(images):
        return jnp.ones((len(images), 3)) * jnp.float32([1, 0, 0])

    stuck = deepfool(attacks.l2(math.inf), num_steps=3)(flat, images, np.zeros(len(images), np.int32), KEY)
    np.testing.assert_array_equal(stuck.images, images)
    assert not np.any(stuck.success)


def test_starts_where_it_is_told():
    known = am.known_distance("l2")
    start = known.images + np.float32(0.01)
    attack = deepfool(attacks.l2(math.inf), num_steps=1)
    result = attack(known.model, known.images, known.labels, KEY, start)
    offsets = np.asarray(result.images) - start
    direction = known.model.weights[..., 1] - known.model.weights[..., 0]
    direction = direction / np.linalg.norm(direction)
    along = np.sum(offsets * direction, axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(offsets, along * direction, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_candidates": 1}, "at least 2"), ({"overshoot": -0.1}, "0 or more"), ({"num_steps": 0}, "at least 1")],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        deepfool(attacks.l2(math.inf), **options)


def test_needs_a_norm_that_moves_every_pixel():
    with pytest.raises(ValueError, match="linf or l2, got l1"):
        deepfool(attacks.l1(math.inf))


def check_against_foolbox(shared, name, norm, count):
    network = recorded.load(shared, name, count)
    attack = deepfool(MAKE[norm](math.inf))
    result = jax.device_get(
        jax.jit(lambda *batch: attack(network.logits_fn, *batch))(network.images, network.labels, KEY)
    )
    expected = network.minimal[f"deepfool_{norm}_foolbox_distance"]
    assert np.mean(result.success) >= np.mean(network.minimal[f"deepfool_{norm}_foolbox_success"])
    np.testing.assert_array_equal(result.distance == 0, expected == 0)
    errors = np.abs(result.distance - expected) / np.maximum(expected, 1e-3)
    assert np.mean(errors <= 1e-5) >= 0.9
    assert np.all(errors <= 1e-3)
    assert np.median(result.distance) == pytest.approx(np.median(expected), rel=0.01)


@every_norm
def test_distances_of_foolbox(shared, norm):
    check_against_foolbox(shared, "cifar_cnn_std", norm, 16)


@pytest.mark.slow
@every_norm
@pytest.mark.parametrize(("name", "count"), [("cifar_cnn_std", 128), ("mnist_cnn_at", 64)])
def test_distances_of_foolbox_on_all_images(shared, name, norm, count):
    check_against_foolbox(shared, name, norm, count)
