"""Gaussian noise: its size, its clipping and what it says about a model."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.attacks import gaussian_noise
from support import attack_models as am

GRAY = np.full((40, 25, 20, 2), 0.5, np.float32)
LABELS = np.zeros(40, np.int32)


def constant(images):
    """Class 0, whatever the image."""
    return jnp.stack([jnp.ones(len(images)), jnp.zeros(len(images))], axis=-1)


def bright(images):
    """Class 1 if the mean pixel is above one half."""
    mean = jnp.mean(images, axis=(1, 2, 3))
    return jnp.stack([0.5 - mean, mean - 0.5], axis=-1)


@pytest.mark.parametrize(("reading", "spread"), [("std", 0.01), ("variance", 0.1)])
def test_size_of_the_noise(reading, spread):
    result = jax.jit(lambda level: gaussian_noise(level, reading=reading)(constant, GRAY, LABELS, jax.random.key(0)))(
        0.01
    )
    noise = np.asarray(result.images, np.float64) - 0.5
    assert np.std(noise) == pytest.approx(spread, rel=0.02)
    assert np.mean(noise) == pytest.approx(0, abs=5 * spread / math.sqrt(noise.size))
    assert np.mean(np.abs(noise) < spread) == pytest.approx(0.6827, abs=0.01)
    np.testing.assert_allclose(result.distance, am.perturbation_sizes(0, noise, "l2"), rtol=1e-5)
    assert not np.any(result.success)
    assert np.all(result.steps == 1)


def test_every_image_has_its_own_noise():
    noisy = gaussian_noise(0.1)(constant, GRAY, LABELS, jax.random.key(0)).images
    noise = np.asarray(noisy).reshape(len(GRAY), -1) - 0.5
    correlations = np.corrcoef(noise) - np.eye(len(GRAY))
    assert np.max(np.abs(correlations)) < 5 / math.sqrt(noise.shape[1])


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0)])
def test_clips_to_the_bounds(bounds):
    images = np.broadcast_to(np.linspace(*bounds, 40, dtype=np.float32)[:, None, None, None], GRAY.shape)
    noisy = np.asarray(gaussian_noise(0.5, bounds=bounds)(constant, images, LABELS, jax.random.key(1)).images)
    assert noisy.min() == bounds[0] and noisy.max() == bounds[1]
    # Half of the noise on a pixel at a bound points outwards.
    assert np.mean(noisy[0] == bounds[0]) == pytest.approx(0.5, abs=0.08)
    inside = (noisy > bounds[0]) & (noisy < bounds[1])
    assert np.mean(inside) > 0.4


def test_success_is_a_wrong_answer():
    images, labels = GRAY + np.float32(1e-4), np.ones(40, np.int32)
    result = gaussian_noise(0.2)(bright, images, labels, jax.random.key(2))
    wrong = np.mean(np.asarray(result.images, np.float64), axis=(1, 2, 3)) <= 0.5
    np.testing.assert_array_equal(result.success, wrong)
    assert 8 < np.sum(wrong) < 32


def test_no_noise_leaves_the_image():
    np.testing.assert_array_equal(gaussian_noise(0.0)(constant, GRAY, LABELS, jax.random.key(0)).images, GRAY)


@pytest.mark.parametrize(("level", "reading", "message"), [(0.1, "sigma", "std, variance"), (-0.1, "std", "0 or more")])
def test_mistakes(level, reading, message):
    with pytest.raises(ValueError, match=message):
        gaussian_noise(level, reading=reading)
