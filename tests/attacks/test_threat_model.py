"""Geometry of the norm balls, against exact measurements, another implementation and known moments."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from advjax.attacks import L1, L2, LINF, l1, l2, linf
from support import attack_models as am

pytestmark = pytest.mark.optimized

NORMS = {"linf": LINF, "l2": L2, "l1": L1}
MAKE = {"linf": linf, "l2": l2, "l1": l1}
EPSILONS = {"linf": (8 / 255, 0.1, 1 / 3, 0.031), "l2": (0.5, 1 / 3, 3.0), "l1": (1 / 3, 0.7, 12.0)}
every_norm = pytest.mark.parametrize("norm", NORMS)

GRAY = np.full((3, 2, 1), 0.5, np.float32)
SAMPLES = 4000


def candidates(images, seed=0):
    """Points inside, near and far outside the ball, one per image."""
    random = np.random.default_rng(seed)
    scales = np.geomspace(1e-4, 30, len(images))[:, None, None, None]
    return (images + scales * random.normal(size=images.shape)).astype(np.float32)


@every_norm
@pytest.mark.parametrize("compile", [False, True])
def test_projection_is_inside_to_the_last_bit(norm, compile):
    images = np.concatenate([am.awkward_images(32), am.gray_images(32)])

    def project(candidates, epsilon):
        return jax.vmap(MAKE[norm](epsilon).project)(images, candidates)

    run = jax.jit(project) if compile else project
    for epsilon in EPSILONS[norm]:
        for seed in range(3):
            projected = np.asarray(run(candidates(images, seed), epsilon))
            sizes = am.perturbation_sizes(images, projected, norm)
            assert np.all(sizes <= np.float64(np.float32(epsilon)))
            assert np.all((projected >= 0) & (projected <= 1))
            assert np.all(jax.vmap(MAKE[norm](epsilon).contains)(images, projected))
            assert sizes.max() > 0.95 * min(epsilon, 1)


@every_norm
def test_projection_in_float64_is_as_exact(norm):
    with jax.enable_x64(True):
        images = am.awkward_images(32).astype(np.float64)
        for epsilon in EPSILONS[norm]:
            projected = jax.vmap(MAKE[norm](epsilon).project)(images, candidates(images).astype(np.float64))
            assert np.all(am.perturbation_sizes(images, projected, norm) <= epsilon)


@every_norm
def test_projection_is_idempotent(norm):
    images = am.awkward_images(32)
    for epsilon in EPSILONS[norm]:
        project = jax.vmap(MAKE[norm](epsilon).project)
        once = project(images, candidates(images))
        np.testing.assert_allclose(project(images, once), once, atol=0 if norm == "linf" else 2e-7)


@every_norm
def test_points_inside_stay_where_they_are(norm):
    images = am.gray_images(4)
    near = images + np.float32(1e-3)
    projected = jax.vmap(MAKE[norm](0.2).project)(images, near)
    np.testing.assert_allclose(projected, near, atol=1e-7)


@pytest.mark.parametrize(
    ("norm", "project_ball"),
    [
        ("linf", lambda delta, epsilon: jnp.clip(delta, -epsilon, epsilon)),
        ("l2", optax.projections.projection_l2_ball),
        ("l1", optax.projections.projection_l1_ball),
    ],
)
def test_projection_is_the_nearest_point(norm, project_ball):
    images = np.full((16, *am.SHAPE), 0.5, np.float32)
    points = candidates(images)
    for epsilon in (0.05, 0.4):
        ours = jax.vmap(NORMS[norm].project, in_axes=(0, 0, None))(images, points, jnp.float32(epsilon)) - images
        theirs = jax.vmap(project_ball, in_axes=(0, None))(points - images, epsilon)
        # The room left for rounding is a few 1e-6 for all pixels together.
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@every_norm
@pytest.mark.parametrize("draw", ["sample", "surface"])
def test_random_starts_are_allowed(norm, draw):
    images = am.awkward_images(64)
    keys = am.keys_of(range(64))
    for epsilon in EPSILONS[norm]:
        starts = jax.vmap(getattr(MAKE[norm](epsilon), draw))(images, keys)
        assert np.all(am.perturbation_sizes(images, starts, norm) <= np.float64(np.float32(epsilon)))
        assert np.all((np.asarray(starts) >= 0) & (np.asarray(starts) <= 1))
        assert starts.dtype == np.float32


def drawn(norm, draw, epsilon):
    """Many perturbations of one gray image, away from the bounds."""
    keys = am.keys_of(range(SAMPLES))
    starts = jax.vmap(lambda key: getattr(MAKE[norm](epsilon), draw)(GRAY, key))(keys)
    return np.asarray(starts, np.float64) - GRAY


def close_to(mean, spread):
    """Within five standard errors of the mean of SAMPLES draws."""
    return pytest.approx(mean, abs=5 * spread / math.sqrt(SAMPLES))


@every_norm
def test_samples_are_uniform_in_the_ball(norm):
    epsilon, dimension = 0.3, GRAY.size
    perturbations = drawn(norm, "sample", epsilon)
    sizes = am.perturbation_sizes(0, perturbations, norm)
    # The share of the volume that lies further inside than a uniform point is itself uniform.
    volumes = (sizes / epsilon) ** dimension
    assert np.mean(volumes) == close_to(1 / 2, math.sqrt(1 / 12))
    assert np.var(volumes) == close_to(1 / 12, 0.1)
    flat = perturbations.reshape(SAMPLES, dimension)
    for pixel in flat.T:
        assert np.mean(pixel) == close_to(0, epsilon)
        magnitude = {"linf": 1 / 2, "l1": 1 / (dimension + 1)}
        if norm in magnitude:
            assert np.mean(np.abs(pixel)) == close_to(epsilon * magnitude[norm], epsilon / 3)
        else:
            assert np.mean(pixel**2) == close_to(epsilon**2 / (dimension + 2), epsilon**2 / 3)
    # The signs of different pixels have nothing to do with each other.
    agreement = np.sign(flat).T @ np.sign(flat) / SAMPLES
    np.testing.assert_allclose(agreement, np.eye(dimension), atol=5 / math.sqrt(SAMPLES))


@every_norm
def test_surface_has_size_epsilon_and_no_preferred_side(norm):
    perturbations = drawn(norm, "surface", 0.3)
    np.testing.assert_allclose(am.perturbation_sizes(0, perturbations, norm), 0.3, rtol=2e-6)
    assert np.mean(perturbations) == close_to(0, 0.3 / math.sqrt(GRAY.size))
    assert len(np.unique(perturbations[:, 0, 0, 0])) > SAMPLES / 2


@every_norm
def test_ascent_has_the_largest_inner_product(norm):
    random = np.random.default_rng(0)
    directions = random.normal(size=(500, *am.SHAPE))
    directions /= am.perturbation_sizes(0, directions, norm)[:, None, None, None]
    for scale in (1e-30, 1e-6, 1.0, 1e20):
        gradient = (scale * random.normal(size=am.SHAPE)).astype(np.float32)
        ascent = np.asarray(NORMS[norm].ascent(gradient), np.float64)
        assert am.perturbation_sizes(0, ascent[None], norm)[0] == pytest.approx(1, rel=1e-6)
        gained = np.sum(ascent * gradient.astype(np.float64))
        dual = np.linalg.norm(gradient.astype(np.float64).ravel(), am.DUAL_ORDER[norm])
        assert gained == pytest.approx(dual, rel=1e-5)
        assert gained >= np.max(np.sum(directions * gradient, axis=(1, 2, 3)))


@every_norm
def test_ascent_of_nothing_is_nothing(norm):
    assert not np.any(NORMS[norm].ascent(np.zeros(am.SHAPE, np.float32)))


@every_norm
def test_contains_what_it_should(norm):
    threat_model = MAKE[norm](0.25)
    one = np.zeros_like(GRAY)
    one[1, 1, 0] = 1
    assert threat_model.contains(GRAY, GRAY)
    assert threat_model.contains(GRAY, GRAY + 0.25 * one)
    assert not threat_model.contains(GRAY, GRAY + np.float32(0.250002) * one)
    assert not threat_model.contains(GRAY + 0.5, GRAY + 0.5 + np.float32(1e-6))
    assert not threat_model.contains(GRAY, GRAY * np.nan)
    assert threat_model.distance(GRAY, GRAY - 0.125 * one) == 0.125


@every_norm
def test_infinite_epsilon_only_leaves_the_bounds(norm):
    threat_model = MAKE[norm](math.inf)
    assert not threat_model.is_bounded
    far = GRAY + np.linspace(-2, 2, GRAY.size, dtype=np.float32).reshape(GRAY.shape)
    np.testing.assert_array_equal(threat_model.project(GRAY, far), np.clip(far, 0, 1))
    assert threat_model.contains(GRAY, np.ones_like(GRAY))


@every_norm
def test_distance_is_the_norm(norm):
    images = am.awkward_images(8)
    points = am.awkward_images(8, seed=5)
    distances = jax.vmap(MAKE[norm](1.0).distance)(images, points)
    np.testing.assert_allclose(distances, am.perturbation_sizes(images, points, norm), rtol=1e-6)
