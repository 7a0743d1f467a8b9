"""FAB against closed forms and the recordings of the original."""

import functools

import attack_models as am
import jax
import numpy as np
import pytest
import recorded

from advjax import attacks

NORMS = {"linf": attacks.linf, "l2": attacks.l2, "l1": attacks.l1}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("num_classes", [2, 3, 4])
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


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_distances_of_the_original(shared, norm):
    reference = recorded.load(shared, "mnist_cnn_at", 32)
    threat_model = NORMS[norm](np.inf)

    @jax.jit
    def run(images, labels, rank):
        attack = attacks.fab(threat_model, aim=attacks.next_likely_class(rank))
        result = attack(reference.logits_fn, images, labels, jax.random.key(0))
        return result.success, result.distance

    found = [jax.device_get(run(reference.images, reference.labels, rank)) for rank in range(1, 10)]
    ours = np.stack([np.where(success, distance, np.inf) for success, distance in found], axis=1)
    ours, theirs = (
        array[reference.clean_correct] for array in (ours, reference.minimal[f"fabt_{norm}_distance_per_target"])
    )
    assert np.mean(np.isfinite(ours) == np.isfinite(theirs)) > 0.99
    both = np.isfinite(ours) & np.isfinite(theirs)
    assert np.mean(np.abs(ours[both] / theirs[both] - 1) < 0.05) > 0.9
    # Measured: a ratio of 1.0000 in linf and of 1.013 in l2.  There one path in ten leaves the recorded one; for the
    # first target one in fifteen leaves its own when the weights of the network are scaled by 1 + 3e-7.
    assert np.median(ours[both]) == pytest.approx(np.median(theirs[both]), rel=0.01 if norm == "linf" else 0.02)
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
