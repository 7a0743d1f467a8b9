"""Gradients that are NaN or infinite: no attack may follow them, and nobody may take them for robustness."""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks import combine, model_queries, runner
from advjax.attacks.candidate import Observed
from advjax.evaluation import report_card, summaries
from support import attack_models as am

EPSILON = 0.2
ATTACKS = {
    "fgsm": lambda ball: attacks.fgsm(ball),
    "pgd": lambda ball: attacks.pgd(ball, num_steps=3, step_size=EPSILON),
    "auto_pgd": lambda ball: attacks.auto_pgd(ball, num_steps=4),
    "fab": lambda ball: attacks.fab(ball, num_steps=3),
    "deepfool": lambda ball: attacks.deepfool(ball, num_steps=3),
}


@pytest.fixture(scope="module")
def linear():
    images = am.gray_images(6)
    model = am.random_linear(images, num_classes=3)
    return model, images, np.argmax(model(images), axis=-1)


def with_term(model, term):
    """The model plus a term of value 0 that only has a gradient, one of its own."""
    return lambda images: model(images) + term(images)[:, None] * jnp.ones(3)


def poisoned(images):
    """``0 sqrt(0)``: the derivative with respect to every pixel is NaN."""
    return 0 * jnp.sqrt(0 * jnp.sum(images, axis=(1, 2, 3)))


def poisoned_pixel(images):
    """NaN with respect to one pixel of the even images alone."""
    even = jnp.arange(len(images)) % 2 == 0
    return 0 * jnp.sqrt(jnp.where(even, 0 * images[:, 0, 0, 0], 1))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ATTACKS)
def test_images_stay_allowed_and_the_result_says_so(linear, name, norm):
    model, images, labels = linear
    attack = ATTACKS[name](getattr(attacks, norm)(EPSILON))
    with pytest.warns(UserWarning, match="gradients are NaN or infinite on 6 of 6 images.*no evidence of robustness"):
        result = attack(with_term(model, poisoned), images, labels, jax.random.key(0))
    assert np.all(np.isfinite(result.images)) and np.all(np.isfinite(result.logits))
    assert np.all(am.perturbation_sizes(images, result.images, norm) <= np.float32(EPSILON))
    np.testing.assert_array_equal(result.nonfinite, True)


@pytest.mark.parametrize("name", ATTACKS)
def test_one_poisoned_pixel_stops_no_attack(linear, name):
    model, images, labels = linear
    attack = ATTACKS[name](attacks.linf(EPSILON))
    both = model, with_term(model, poisoned_pixel)
    run = jax.jit(lambda images: [attack(logits_fn, images, labels, jax.random.key(0)) for logits_fn in both])
    healthy, poisoned = run(images)
    assert np.all(healthy.success) and not np.any(healthy.nonfinite)
    np.testing.assert_array_equal(poisoned.success, True)
    np.testing.assert_array_equal(poisoned.nonfinite, np.arange(6) % 2 == 0)


def test_finite_gradients_are_left_alone_and_infinite_ones_keep_their_sign():
    gradients = np.random.default_rng(0).normal(size=(3, 2, 4, 4, 1)).astype(np.float32)
    same, nonfinite = model_queries.finite(jnp.asarray(gradients))
    np.testing.assert_array_equal(same, gradients)
    assert not np.any(nonfinite)
    gradients[1, 0, 2, 2, 0], gradients[1, 1, 0, 0, 0], gradients[1, 1] = np.nan, np.nan, -np.inf
    mended, nonfinite = model_queries.finite(jnp.asarray(gradients))
    np.testing.assert_array_equal(nonfinite, [False, True, False])
    assert mended[1, 0, 2, 2, 0] == 0 and np.all(mended[1, 1] < 0)
    assert np.all(np.isfinite(np.sum(np.asarray(mended) ** 2, axis=(2, 3, 4))))
    np.testing.assert_array_equal(mended[::2], gradients[::2])


class Lost(NamedTuple):
    point: jax.Array
    best: Observed


def test_an_attack_of_ones_own_that_loses_its_image_gets_it_back(linear):
    model, images, labels = linear
    lost = attacks.Attack(
        attacks.linf(EPSILON),
        1,
        init=lambda problem: Lost(problem.image, Observed(problem.image)),
        objective=None,
        observe=lambda problem, state, logits: state,
        move=lambda problem, state, logits, gradient: state._replace(
            best=Observed(jnp.where(problem.label == 0, jnp.nan, state.point))
        ),
    )
    np.testing.assert_array_equal(lost(model, images, labels, jax.random.key(0)).images, images)


def test_combinations_remember(linear):
    model, images, labels = linear
    sick = with_term(model, poisoned_pixel)
    bim = attacks.bim(attacks.linf(1e-4), num_steps=1, step_size=1e-4)
    square = attacks.square(attacks.linf(1e-4), num_queries=1)
    for attack in (
        attacks.worst_of(bim, square),
        attacks.worst_of(square, bim),
        attacks.with_restarts(bim, 2),
        attacks.with_predicted_labels(bim),
        attacks.auto_pgd_l1_large_epsilon(attacks.l1(1e-4), num_steps=5),
    ):
        result = jax.jit(lambda images, attack=attack: attack(sick, images, labels, jax.random.key(0)))(images)
        np.testing.assert_array_equal(result.nonfinite, np.arange(6) % 2 == 0)


def test_the_runner_warns_of_images_that_only_look_robust(linear):
    model, images, labels = linear
    ball = attacks.linf(EPSILON)
    apgd = (combine.restarts("bim", attacks.bim(ball, num_steps=1, step_size=EPSILON), 1),)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        healthy = runner.run_stages(apgd, ball, model, images, labels, batch_size=8)
        # One pixel less is broken all the same, and there is nothing to warn of.
        half = runner.run_stages(apgd, ball, with_term(model, poisoned_pixel), images, labels, batch_size=8)
    np.testing.assert_array_equal(healthy.broken_by, 0)
    assert not np.any(healthy.nonfinite)
    np.testing.assert_array_equal(half.broken_by, 0)
    assert np.any(half.nonfinite)
    with pytest.warns(UserWarning, match="NaN or infinite on 6 of 6 robust images"):
        blind = runner.run_stages(apgd, ball, with_term(model, poisoned), images, labels, batch_size=8)
    np.testing.assert_array_equal(blind.broken_by, runner.ROBUST)
    np.testing.assert_array_equal(blind.nonfinite, True)


def test_the_report_card_sees_them(linear):
    model, images, labels = linear
    (check,) = report_card.examine(
        with_term(model, poisoned), images, labels, attacks.linf(EPSILON), names=["gradients"]
    )
    assert not check.passed and "100.0% are NaN or infinite" in check.finding
    assert check.numbers == {"zero_fraction": 0.0, "nonfinite_fraction": 1.0}


def test_the_report_names_the_attacks_that_met_them():
    fine, half = np.zeros(4, bool), np.arange(4) % 2 == 0
    check = summaries.finite_check([("pgd", fine), ("square", fine)])
    assert check.passed and check.numbers == {"nonfinite": 0.0}
    check = summaries.finite_check([("pgd", fine), ("autopgd", half)])
    assert not check.passed and check.numbers == {"nonfinite": 0.5}
    assert "50.0% of the images under autopgd" in check.finding and "under pgd" not in check.finding


def test_images_that_an_attack_leaves_as_they_are_are_warned_of(linear):
    model, images, labels = linear
    attack, key = attacks.fgsm(attacks.linf(EPSILON)), jax.random.key(0)
    with pytest.warns(UserWarning, match="made no progress on 6 of 6 images: their gradients are zero"):
        attack(lambda images: jax.lax.stop_gradient(model(images)), images, labels, key)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack(model, images, labels, key)
        # Nothing may change in a ball of size 0, and a minimum-norm attack says by its distance that it has failed.
        attacks.fgsm(attacks.linf(0.0))(model, images, labels, key)


def test_the_report_names_the_attacks_whose_successes_did_not_hold():
    fine, half = np.zeros(4, bool), np.arange(4) % 2 == 0
    check = summaries.confirmed_check([("pgd", fine)])
    assert check.passed and check.numbers == {"refused": 0.0}
    check = summaries.confirmed_check([("pgd", fine), ("autopgd", half)])
    assert not check.passed and check.numbers == {"refused": 0.5}
    assert "50.0% of the images under autopgd" in check.finding and "under pgd" not in check.finding
