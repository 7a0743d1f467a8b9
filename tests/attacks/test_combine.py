"""Combinations of attacks, against loops written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks import AttackResult, model_queries
from support import attack_models as am

COUNT = 12
IMAGES = np.full((COUNT, 2, 2, 1), 0.5, np.float32)
LABELS = np.arange(COUNT) % 3


def three_classes(images):
    total = jnp.sum(images, axis=(1, 2, 3))
    return jnp.stack([total, 2 - total, 0 * total], axis=-1)


def lottery(chance):
    """An attack that succeeds by luck, at a random distance; it leaves adversarial images alone."""

    def attack(logits_fn, images, labels, rng, start=None):
        luck, distance = (
            jax.vmap(lambda key, i=i: jax.random.uniform(jax.random.fold_in(key, i)))(rng) for i in (0, 1)
        )
        untouched = images[:, 0, 0, 0] == 0.5
        moved = images + 0.1 * distance[:, None, None, None]
        steps = jnp.where(untouched, 7, 0).astype(jnp.int32)
        return AttackResult(moved, logits_fn(moved), luck < chance, distance, steps)

    return attack


def by_hand(attack, keys, rounds):
    folded = [jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys) for i in range(rounds)]
    return [jax.device_get(attack(three_classes, IMAGES, LABELS, key)) for key in folded]


@pytest.mark.parametrize("keep", ["first", "closest"])
@pytest.mark.parametrize("combine", ["with_restarts", "worst_of"])
def test_keeps_what_a_loop_would(combine, keep):
    keys, attack = am.keys_of(range(COUNT)), lottery(0.3)
    rounds = by_hand(attack, keys, 5)
    success = np.stack([result.success for result in rounds])
    distance = np.where(success, np.stack([result.distance for result in rounds]), np.inf)
    chosen = np.argmax(success, axis=0) if keep == "first" else np.argmin(distance, axis=0)
    chosen = np.where(success.any(axis=0), chosen, 0)
    assert np.sum(chosen > 0) > 2 and np.sum(~success.any(axis=0)) >= 1
    if combine == "with_restarts":
        combined = attacks.with_restarts(attack, 5, keep=keep)
    else:
        combined = attacks.worst_of(*[attack] * 5, keep=keep)
    result = jax.jit(lambda keys: combined(three_classes, IMAGES, LABELS, keys))(keys)
    np.testing.assert_array_equal(result.success, success.any(axis=0))
    expected = np.stack([rounds[round].images[i] for i, round in enumerate(chosen)])
    np.testing.assert_allclose(result.images, expected, rtol=1e-6)
    first = np.argmax(success, axis=0)
    attacked = np.where(success.any(axis=0), first + 1, 5) if keep == "first" else 5
    np.testing.assert_array_equal(result.steps, 7 * attacked)


def test_rounds_are_traced_once():
    traced = 0

    def counting(logits_fn, images, labels, rng, start=None):
        nonlocal traced
        traced += 1
        return lottery(0.5)(logits_fn, images, labels, rng)

    attacks.with_restarts(counting, 50)(three_classes, IMAGES, LABELS, jax.random.key(0))
    assert traced == 1


def test_targets_are_the_next_likely_classes():
    def problem(label):
        clean_logits = np.float32([0.1, 3.0, 2.0, -1.0])
        return attacks.Problem(IMAGES[0], np.int32(label), jax.random.key(0), clean_logits, None)

    ranks = [int(attacks.next_likely_class(rank)(problem(1))) for rank in (1, 2, 3)]
    assert ranks == [2, 0, 3]
    # Of a misclassified image the winner comes first, and the label is left out.
    assert [int(attacks.next_likely_class(rank)(problem(0))) for rank in (1, 2, 3)] == [1, 2, 3]
    assert int(jax.jit(lambda rank: attacks.next_likely_class(rank)(problem(1)))(2)) == 0


@pytest.mark.parametrize(("num_targets", "num_classes", "rounds"), [(9, 2, 1), (9, 4, 3), (2, 4, 2)])
def test_over_targets_goes_through_all_of_them(num_targets, num_classes, rounds):
    model = am.random_linear(am.gray_images(4), num_classes)
    images = am.gray_images(4)

    def make_attack(aim):
        def attack(logits_fn, images, labels, rng, start=None):
            logits = logits_fn(images)
            target = jax.vmap(aim)(attacks.Problem(images, jnp.asarray(labels), rng, logits, None))
            none = jnp.zeros(len(images), jnp.int32)
            distance = target.astype(jnp.float32) + 1
            success = jax.vmap(jnp.argmin)(logits) == target
            return AttackResult(images, logits, success, distance, none + 1)

        return attack

    logits = np.asarray(model(images))
    labels = np.argmax(logits, axis=-1)
    result = attacks.over_targets(make_attack, num_targets)(model, images, labels, jax.random.key(0))
    np.testing.assert_array_equal(result.steps, rounds)
    # The least likely class is the last target, and the only one that succeeds.
    np.testing.assert_array_equal(result.success, np.full(4, rounds == num_classes - 1))
    if rounds == num_classes - 1:
        np.testing.assert_array_equal(result.distance, np.argmin(logits, axis=-1) + 1)


def noisy(model):
    """Multiplies the images by noise of mean 1 first; per image, from the key alone."""

    def stochastic(images, rng):
        return model(images * (1 + 0.3 * jax.random.normal(rng, images.shape[1:])))

    return stochastic


def test_expectation_of_a_deterministic_model_is_that_model():
    net, images = am.smooth_net(), am.awkward_images(6)
    labels = np.argmax(np.asarray(net(images)), axis=-1)
    attack = attacks.bim(attacks.linf(0.05), num_steps=3, step_size=0.02)
    plain = attack(net, images, labels, jax.random.key(0))
    mean = attack(attacks.expectation(lambda images, rng: net(images), 3), images, labels, jax.random.key(0))
    np.testing.assert_allclose(mean.images, plain.images, atol=1e-6)
    np.testing.assert_allclose(mean.logits, jax.nn.log_softmax(plain.logits), atol=1e-5)
    np.testing.assert_array_equal(mean.success, plain.success)


def test_expectation_is_the_mean_over_draws():
    net, images, keys = am.smooth_net(), am.gray_images(4), am.keys_of(range(4))
    model = attacks.expectation(noisy(net), 5)
    losses = jax.vmap(jax.grad(attacks.cross_entropy), in_axes=(0, None))
    logits, gradients = model_queries.differentiate(model, images, keys, lambda logits: losses(logits, 1))
    for i, key in enumerate(keys):
        draws = jax.random.split(key, 5)
        probabilities = [jax.nn.softmax(noisy(net)(images[i : i + 1], draw)[0]) for draw in draws]
        np.testing.assert_allclose(logits[i], np.log(np.mean(probabilities, axis=0)), atol=1e-5)
        each = [
            jax.grad(lambda image, draw=draw: attacks.cross_entropy(noisy(net)(image[None], draw)[0], 1))(images[i])
            for draw in draws
        ]
        np.testing.assert_allclose(gradients[i], np.mean(each, axis=0), atol=1e-6)
    alone, _ = model_queries.differentiate(model, images[2:3], keys[2:3], lambda logits: losses(logits, 1))
    np.testing.assert_allclose(alone[0], logits[2], atol=1e-6)


def test_expectation_draws_afresh_for_every_question():
    """A linear model whose gradient is the noise itself: no two steps may go the same way."""
    weights = np.ones((2, 2, 1, 2), np.float32)

    def stochastic(images, rng):
        return am.Linear(weights * jax.random.normal(rng, weights.shape), np.zeros(2, np.float32))(images)

    attack = attacks.bim(attacks.l2(0.4), num_steps=3, step_size=0.05)
    states = attacks.trajectory(
        attack, attacks.expectation(stochastic, 1), IMAGES, LABELS % 2, am.keys_of(range(COUNT))
    )
    moves = np.diff(np.concatenate([IMAGES[None], states.point]), axis=0).reshape(4, COUNT, 4)[:3]
    cosines = np.sum(moves[0] * moves[1], axis=-1) / 0.05**2
    assert np.all(cosines < 0.999)


@pytest.mark.parametrize(
    "attack",
    [
        attacks.pgd(attacks.linf(0.2), num_steps=6, step_size=0.05),
        attacks.auto_pgd(attacks.linf(0.2), num_steps=6),
        attacks.square(attacks.linf(0.2), num_queries=30),
    ],
)
def test_luck_of_the_draws_ends_no_attack(attack):
    """The mean of the draws is often wrong on the image itself; far enough away from it, every draw is."""

    def stochastic(images, rng):
        margin = jnp.sum(images - 0.5, axis=(1, 2, 3)) + 0.02 + 0.2 * jax.random.normal(rng)
        return jnp.stack([5 * margin, 0 * margin], axis=-1)

    labels, keys = np.zeros(COUNT, np.int32), am.keys_of(range(COUNT))
    model = attacks.expectation(stochastic, 8)
    untouched = attacks.gaussian_noise(0.0)(model, IMAGES, labels, keys)
    assert 0 < np.sum(untouched.success) < COUNT
    result = attack(model, IMAGES, labels, keys, until_success=True)
    np.testing.assert_array_equal(result.steps, attack.num_steps)
    assert np.all(np.sum(result.images - 0.5, axis=(1, 2, 3)) < -0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attacks.with_restarts(lottery(1), 0), "num_restarts must be at least 1, got 0"),
        (lambda: attacks.with_restarts(lottery(1), 2, keep="best"), "keep must be one of first, closest, got 'best'"),
        (lambda: attacks.over_targets(lambda aim: lottery(1), 0), "num_targets must be at least 1, got 0"),
        (lambda: attacks.worst_of(), "at least one attack"),
        (lambda: attacks.expectation(noisy(three_classes), 0), "num_samples must be at least 1, got 0"),
        (
            lambda: attacks.auto_pgd(attacks.linf(0.1), targeted=True, aim=attacks.next_likely_class(1)),
            "either targeted=True or aim",
        ),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


FEW = attacks.bim(attacks.linf(0.1), num_steps=2, step_size=0.05)
COMBINATIONS = {
    "with_restarts": lambda: attacks.with_restarts(FEW, 2),
    "over_targets": lambda: attacks.over_targets(
        lambda aim: attacks.bim(attacks.linf(0.1), num_steps=2, step_size=0.05, aim=aim), 2
    ),
    "worst_of": lambda: attacks.worst_of(FEW, FEW, keep="closest"),
    "with_predicted_labels": lambda: attacks.with_predicted_labels(FEW),
    "auto_pgd_l1_large_epsilon": lambda: attacks.auto_pgd_l1_large_epsilon(attacks.l1(1.0), num_steps=5),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_combinations_take_the_expectation_of_a_random_model(name):
    """With draws that are all the same, they find what they find on the model itself."""
    net, images = am.smooth_net(), am.gray_images(4)
    labels = np.argmax(np.asarray(net(images)), axis=-1)
    labels[0] = (labels[0] + 1) % 3
    model = attacks.expectation(lambda images, rng: net(images), 2)
    attack = COMBINATIONS[name]()
    run = jax.jit(lambda key: [attack(logits_fn, images, labels, key) for logits_fn in (net, model)])
    plain, mean = run(jax.random.key(0))
    np.testing.assert_allclose(mean.images, plain.images, atol=1e-5)
    np.testing.assert_array_equal(mean.success, plain.success)
    assert np.any(np.asarray(mean.images) != images)
