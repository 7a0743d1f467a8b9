"""FAB against closed forms and the recordings of the original."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from support import attack_models as am
from support import recorded

pytestmark = pytest.mark.optimized

NORMS = {"linf": attacks.linf, "l2": attacks.l2, "l1": attacks.l1}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("aimed", [False, True])
def test_distance_of_a_linear_model(norm, num_classes, aimed):
    """After a few steps no further away than 1 % beyond the nearest boundary."""
    images = am.gray_images()
    model = am.random_linear(images, num_classes)
    labels = np.argmax(np.asarray(model(images)), axis=-1)
    threat_model = NORMS[norm](np.inf)
    attack = attacks.fab(threat_model, num_steps=12)
    if aimed:
        make_attack = functools.partial(attacks.fab, threat_model, num_steps=12)
        attack = attacks.over_targets(lambda aim: make_attack(aim=aim), keep="closest")
    result = jax.jit(lambda key: attack(model, images, labels, key))(jax.random.key(0))
    assert np.all(result.success)
    ratios = np.asarray(result.distance) / am.lower_bounds(model, images, labels, norm)
    assert np.all((ratios > 1 - 1e-5) & (ratios < 1.01))


def test_counts_only_what_is_within_epsilon():
    images = am.gray_images()
    model = am.random_linear(images, 3)
    labels = np.argmax(np.asarray(model(images)), axis=-1)
    bounds = am.lower_bounds(model, images, labels, "linf")
    epsilon = float(np.sort(bounds)[4] * 1.02)
    result = attacks.fab(attacks.linf(epsilon), num_steps=12)(model, images, labels, jax.random.key(0))
    np.testing.assert_array_equal(result.success, bounds < epsilon)
    assert np.all(np.asarray(result.distance) <= np.float32(epsilon))


def test_random_start_depends_on_the_key_and_stays_within_half_of_epsilon():
    images, model = am.gray_images(), am.smooth_net()
    labels = np.argmax(np.asarray(model(images)), axis=-1)
    attack = attacks.fab(attacks.linf(0.05), random_start=True)
    clean = np.asarray(model(images))
    points = [
        np.asarray(attack.init(attacks.Problem(images[0], labels[0], jax.random.key(seed), clean[0], None)).point)
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(points[0], points[1])
    assert np.any(points[0] != points[2])
    assert np.abs(points[0] - images[0]).max() == pytest.approx(0.025, rel=1e-4)


def to_hyperplane_as_recorded(point, normal, gap, bounds):
    """The same projection as the original computes it, with the cancellations that it suffers in float32.

    Pixels meet their bounds at levels that are sorted; what is left of the squared normal beyond each of them is a
    total minus a running sum, whose rounding error is multiplied by the distance to the next level.  That may be
    millions, and then the solution ends far away.
    """
    assert bounds == (0.0, 1.0)
    shape, point, normal = point.shape, point.ravel(), jnp.sign(gap).astype(jnp.float32) * normal.ravel()
    gap = jnp.abs(gap)
    usable = jnp.abs(normal) >= 1e-8
    slope = jnp.where(usable, normal, 1)
    levels = jnp.where(usable, jnp.where(slope > 0, 1 - point, point) / jnp.abs(slope), 1e12)
    order = jnp.argsort(levels)
    ordered = jnp.where(levels[order] >= 1e12, 0, levels[order])
    following = jnp.append(ordered[1:], 0.0)
    squares = normal[order] ** 2
    total = jnp.sum(squares)
    running = jax.lax.scan(lambda carry, x: (carry + x, carry + x), jnp.float32(0), squares)[1]
    beyond = total - running
    steps = (following - ordered) * beyond
    closed = total * ordered[0] + jnp.append(0.0, jax.lax.scan(lambda c, x: (c + x, c + x), jnp.float32(0), steps)[1])

    def halve(_, ends):
        low, high = ends
        middle = (low + high) // 2
        short = closed[middle] < gap
        return jnp.where(short, middle, low), jnp.where(short, high, middle)

    last = jax.lax.fori_loop(0, 10, halve, (jnp.int32(0), jnp.int32(point.size - 1)))[0]
    level = jnp.where(beyond[last] == 0, 0, (gap - closed[last]) / beyond[last] + ordered[last])
    level = jnp.where(gap < closed[0], gap / total, level)
    farthest = jnp.where(usable, levels * normal, 0)
    moved = jnp.where(level > levels, farthest, level * jnp.where(usable, normal, 0))
    return jnp.where(jnp.sum(farthest * normal) < gap, farthest, moved).reshape(shape)


RECORDED = {
    "linf": attacks.linf(np.inf),
    "l2": attacks.l2(np.inf),
    "l2_as_recorded": attacks.ThreatModel(attacks.L2._replace(to_hyperplane=to_hyperplane_as_recorded), np.inf),
}
MEDIAN_TOLERANCE = {"linf": 0.01, "l2": 0.02}
"""Measured: ratios of medians of 1.0000 and, in l2, of 1.013.

The l2 recording is of a projection that goes astray in float32: of the 54,000 that make up these 270 paths, 89 end
more than half their length from where they should.  Some of these leaps lead to a closer boundary.  The original with
nothing but its projection done in float64 has a ratio of 1.0138 as well, and 259 of its 270 distances are ours to 1e-4.

Where the leaps go is decided by rounding, so with the projection as recorded the medians say nothing to 1 %: logits
times 1 + k 2^-20, k = -5 ... 5, which changes nothing but rounding, give ratios from 0.990 to 1.000.  Path by path it
is the same attack, and that is compared for all: the share of distances that agree to 1e-3 is 0.963 (linf), 0.914 (l2)
and 0.869 to 0.891 (as recorded, all k), but 0.18 and 0.39 (linf, as recorded) with an eta of 1.051, and 0.15 and 0.29
with a beta of 0.89, which the medians do not notice.
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDED)
def test_distances_of_the_original(shared, name):
    reference, norm = recorded.load(shared, "mnist_cnn_at", 32), name.split("_")[0]

    @jax.jit
    def run(images, labels, rank):
        attack = attacks.fab(RECORDED[name], aim=attacks.next_likely_class(rank))
        result = attack(reference.logits_fn, images, labels, jax.random.key(0))
        return result.success, result.distance

    found = [jax.device_get(run(reference.images, reference.labels, rank)) for rank in range(1, 10)]
    ours = np.stack([np.where(success, distance, np.inf) for success, distance in found], axis=1)
    ours, theirs = (
        array[reference.clean_correct] for array in (ours, reference.minimal[f"fabt_{norm}_distance_per_target"])
    )
    assert np.mean(np.isfinite(ours) == np.isfinite(theirs)) > 0.99
    both = np.isfinite(ours) & np.isfinite(theirs)
    deviations = np.abs(ours[both] / theirs[both] - 1)
    assert np.mean(deviations < 0.05) > 0.9
    assert np.mean(deviations < 1e-3) > 0.8
    if name in MEDIAN_TOLERANCE:
        assert np.median(ours[both]) == pytest.approx(np.median(theirs[both]), rel=MEDIAN_TOLERANCE[name])
    assert np.mean(np.abs(ours.min(axis=1) / theirs.min(axis=1) - 1) < 0.05) > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targeted": True, "aim": attacks.next_likely_class(1)}, "either targeted=True or aim"),
        ({"random_start": True}, "random start of fab needs a finite epsilon"),
        ({"eta": 0.9}, "eta must be 1 or more, got 0.9"),
        ({"beta": 1.5}, r"beta must be in \[0, 1\], got 1.5"),
        ({"alpha_max": -0.1}, r"alpha_max must be in \[0, 1\], got -0.1"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        attacks.fab(attacks.linf(np.inf), **options)
