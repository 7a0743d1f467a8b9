"""AutoPGD for l1: its projection against bisection, its steps against hand calculation, its strength against PGD."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks import auto_pgd_l1, auto_pgd_l1_large_epsilon, l1
from advjax.attacks.auto_pgd_l1 import largest_signs, project_l1
from support import attack_models as am
from support.attack_rows import QUICK

pytestmark = pytest.mark.optimized

KEY = jax.random.key(0)


def nearest_by_bisection(image, candidate, epsilon, bounds):
    """In float64: the threshold t of ``clip(|candidate - image| - t, 0, room)`` is bisected instead of computed."""
    image, candidate = np.asarray(image, np.float64), np.asarray(candidate, np.float64)
    delta = candidate - image
    room = np.where(delta > 0, bounds[1] - image, image - bounds[0])

    def moved(threshold):
        return np.clip(np.abs(delta) - threshold, 0, room)

    low, high = 0.0, np.max(np.abs(delta))
    if np.sum(moved(0.0)) > epsilon:
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if np.sum(moved(middle)) > epsilon else (low, middle)
        low = high
    return image + np.sign(delta) * moved(low)


@functools.cache
def projection(bounds):
    """``(images, candidates, epsilon) -> projected``, compiled once for every epsilon."""

    def project(images, candidates, epsilon):
        return jax.vmap(functools.partial(project_l1, l1(epsilon, bounds)))(images, candidates)

    return jax.jit(project)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 2.0)])
@pytest.mark.parametrize("epsilon", [1e-2, 0.7, 5.0, 12.0, 1e3])
def test_projection_is_the_one_that_bisection_finds(bounds, epsilon):
    images = np.concatenate([am.awkward_images(12), am.gray_images(12)])
    random = np.random.default_rng(0)
    scales = np.geomspace(1e-3, 10, len(images))[:, None, None, None]
    candidates = (images + scales * random.normal(size=images.shape)).astype(np.float32)
    projected = projection(bounds)(images, candidates, np.float32(epsilon))
    expected = [nearest_by_bisection(*pair, epsilon, bounds) for pair in zip(images, candidates, strict=True)]
    # The room left for rounding is a few 1e-6 for all pixels together.
    np.testing.assert_allclose(projected, expected, atol=1e-5)
    assert np.all(am.perturbation_sizes(images, projected, "l1") <= np.float64(np.float32(epsilon)))
    assert np.all((np.asarray(projected) >= bounds[0]) & (np.asarray(projected) <= bounds[1]))


def test_projection_is_nearer_than_the_ball_and_then_the_bounds():
    images, random = am.awkward_images(16), np.random.default_rng(1)
    candidates = (images + 0.3 * random.normal(size=images.shape)).astype(np.float32)
    threat_model = l1(3.0)
    exact = jax.vmap(functools.partial(project_l1, threat_model))(images, candidates)
    two_steps = jax.vmap(threat_model.project)(images, candidates)
    gained = am.perturbation_sizes(candidates, two_steps, "l2") - am.perturbation_sizes(candidates, exact, "l2")
    assert np.all(gained >= -1e-5)
    assert np.median(gained) > 1e-3
    # What does not fit into one pixel goes to the others.
    assert np.all(am.perturbation_sizes(images, exact, "l1") > 2.999)


def test_largest_signs():
    gradient = jnp.float32([[[3, -1, 0, -4], [2, 0.5, 0, 0]]])
    np.testing.assert_array_equal(largest_signs(gradient, 1.0), [[[0, 0, 0, -1], [0, 0, 0, 0]]])
    np.testing.assert_allclose(largest_signs(gradient, 3.0), np.float32([[[1, 0, 0, -1], [1, 0, 0, 0]]]) / 3)
    np.testing.assert_array_equal(largest_signs(gradient, 0.0), largest_signs(gradient, 1.0))
    np.testing.assert_allclose(largest_signs(gradient, 8.0), np.sign(gradient) / 5)
    assert not np.any(largest_signs(0 * gradient, 3.0))


def states_of(attack, model, images, labels, start=None):
    run = jax.jit(functools.partial(attacks.trajectory, attack, model))
    return jax.device_get(run(images, labels, KEY, start))


def test_follows_the_published_schedule():
    """Step size, number of changed pixels and returns to the best point, recomputed from the observed points."""
    model, images = am.smooth_net(), am.gray_images(4)
    labels = np.argmax(model(images), axis=-1)
    epsilon, num_steps = 2.0, 50
    states = states_of(auto_pgd_l1(l1(epsilon), num_steps=num_steps), model, images, labels)
    size = images[0].size
    for i in range(len(images)):
        step_size, num_changed, sparsity = epsilon, 0.2 * size, size
        for j in range(num_steps):
            if j > 0 and j % 2 == 0:
                now = np.sum(states.highest.image[j, i] != images[i])
                step_size = epsilon if now < 0.95 * sparsity else max(step_size / 1.5, epsilon / 10)
                num_changed, sparsity = now / 1.5, now
            assert states.step_size[j, i] == pytest.approx(step_size, rel=1e-5)
            assert states.num_changed[j, i] == pytest.approx(num_changed, rel=1e-5)
    assert np.all(np.diff(states.highest.loss, axis=0) >= 0)
    assert np.min(states.step_size) < 0.2 * epsilon
    assert np.sum(states.point[-1] != images) < np.sum(states.point[0] != images)


def test_first_step():
    model, images = am.smooth_net(), am.gray_images(4)
    labels = np.argmax(model(images), axis=-1)
    start = np.clip(images + np.float32(1e-3), 0, 1)
    start[:, :, 3:] = images[:, :, 3:]
    attack = auto_pgd_l1(l1(1.0), num_steps=10)
    states = states_of(attack, model, images, labels, start)
    gradients = jax.grad(lambda x: jnp.sum(jax.vmap(attacks.cross_entropy)(model(x), labels)))(start)
    changed = 5 * 3 * 2
    for i, gradient in enumerate(np.asarray(gradients)):
        threshold = np.sort(np.abs(gradient).ravel())[-int(changed / 1.5)]
        step = np.sign(gradient) * (np.abs(gradient) >= threshold) / int(changed / 1.5)
        expected = nearest_by_bisection(images[i], start[i] + step, 1.0, (0.0, 1.0))
        np.testing.assert_allclose(states.point[0, i], expected, atol=1e-5)


@pytest.mark.parametrize(("loss", "num_classes"), [("ce", 2), ("dlr", 2), ("ce", 4), ("dlr", 4)])
def test_linear_models_with_any_number_of_classes(loss, num_classes):
    """The smallest l1 perturbation spends everything on one pixel, which must have room for it."""
    images = am.gray_images()
    model = am.random_linear(images, num_classes)
    labels = np.argmax(model(images), axis=-1)
    bounds = am.lower_bounds(model, images, labels, "l1")
    attack = jax.jit(
        lambda epsilon: auto_pgd_l1(l1(epsilon), loss=loss, num_steps=60)(model, images, labels, KEY).success
    )
    for image, bound in enumerate(bounds[:3]):
        assert not attack(0.98 * bound)[image]
        if bound < 0.3:
            assert attack(1.25 * bound)[image]


def average_robustness(make, model, images, labels):
    run = jax.jit(lambda epsilon: make(l1(epsilon))(model, images, labels, KEY).success)
    return np.mean([1 - np.mean(run(epsilon)) for epsilon in np.geomspace(0.1, 4, 8)])


@pytest.mark.slow
def test_stronger_than_pgd_with_as_many_steps():
    model, images = am.smooth_net(num_classes=4), am.awkward_images(32)
    labels = np.argmax(model(images), axis=-1)

    def pgd(threat_model):
        return attacks.pgd(threat_model, num_steps=50, step_size=threat_model.epsilon / 4)

    ours = average_robustness(functools.partial(auto_pgd_l1, num_steps=50), model, images, labels)
    wide = average_robustness(functools.partial(auto_pgd_l1_large_epsilon, num_steps=50), model, images, labels)
    theirs = average_robustness(pgd, model, images, labels)
    assert ours < theirs
    assert wide < theirs
    assert 0.05 < ours < 0.95


def test_large_epsilon_ends_inside_the_ball():
    model, images = am.smooth_net(), am.awkward_images()
    labels = np.array(np.argmax(model(images), axis=-1))
    labels[0] = (labels[0] + 1) % 3
    attack = auto_pgd_l1_large_epsilon(l1(0.8), num_steps=11)
    run = jax.jit(functools.partial(attack, model, until_success=True))
    result = jax.device_get(run(images, labels, KEY))
    assert np.all(am.perturbation_sizes(images, result.images, "l1") <= np.float64(np.float32(0.8)))
    np.testing.assert_array_equal(result.images[0], images[0])
    # Four steps in each of the wider balls, at most three in the last.
    assert np.all((result.steps >= 8) & (result.steps <= 11))
    assert np.all(result.steps[~result.success] == 11)


@pytest.mark.parametrize("loss", [pytest.param("ce", marks=pytest.mark.slow), "dlr"])
def test_an_aim_reaches_its_class_and_any_other_counts_as_well(loss):
    known = am.known_distance("l1")
    # Class 2 is out of reach: aiming there is no better than aiming at the class beyond the boundary is good.
    make = functools.partial(auto_pgd_l1, l1(1.3 * known.epsilon), num_steps=30, loss=loss)
    aimed = jax.jit(functools.partial(make(aim=attacks.next_likely_class(1)), known.model), compiler_options=QUICK)
    result = jax.device_get(aimed(known.images, known.labels, KEY))
    assert np.all(result.success)
    np.testing.assert_array_equal(np.argmax(result.logits, axis=-1), known.other_labels)
    wide = auto_pgd_l1_large_epsilon(l1(1.3 * known.epsilon), num_steps=30, loss=loss, aim=attacks.next_likely_class(1))
    run = jax.jit(functools.partial(wide, known.model, until_success=True), compiler_options=QUICK)
    assert np.all(run(known.images, known.labels, KEY).success)


def test_the_aimed_loss_is_the_targeted_one():
    """Towards a class given as an aim or as the label, cross-entropy has the same points."""
    model, images = am.smooth_net(), am.gray_images(4)
    labels = np.argmax(model(images), axis=-1)
    aimed = states_of(auto_pgd_l1(l1(1.0), num_steps=10, aim=attacks.next_class), model, images, labels)
    targeted = states_of(auto_pgd_l1(l1(1.0), num_steps=10, targeted=True), model, images, (labels + 1) % 3)
    np.testing.assert_array_equal(aimed.point, targeted.point)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: auto_pgd_l1(attacks.l2(0.5)), "needs l1 with a finite epsilon, got l2"),
        (lambda: auto_pgd_l1(l1(math.inf)), "needs l1 with a finite epsilon, got l1 inf"),
        (lambda: auto_pgd_l1(l1(1.0), loss="mse"), "ce, dlr"),
        (lambda: auto_pgd_l1(l1(1.0), num_steps=0), "at least 1"),
        (lambda: auto_pgd_l1_large_epsilon(l1(1.0), num_steps=2), "must be 3, or 5 or more"),
        (lambda: auto_pgd_l1_large_epsilon(attacks.linf(0.1)), "needs l1 with a finite epsilon, got linf"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("num_steps", [2, 4])
def test_steps_that_three_epsilons_cannot_share(num_steps):
    with pytest.raises(ValueError, match=f"must be 3, or 5 or more.*got {num_steps}"):
        attacks.auto_pgd_l1_large_epsilon(attacks.l1(1.0), num_steps=num_steps)
    assert callable(attacks.auto_pgd_l1_large_epsilon(attacks.l1(1.0), num_steps=num_steps + 1))
