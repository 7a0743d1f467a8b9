"""FGSM, BIM and PGD against formulas written out by hand, and the rules for what is returned."""

import jax
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks.candidate import KEEP_RULES, Candidate, keep_rule, unobserved
from support import attack_models as am

pytestmark = pytest.mark.optimized

KEY = jax.random.key(0)
EPSILON = {"linf": 0.05, "l2": 0.6}
MAKE = {"linf": attacks.linf, "l2": attacks.l2}


@pytest.fixture(scope="module")
def net():
    return am.smooth_net()


@pytest.fixture(scope="module")
def images():
    return am.awkward_images(12, seed=4)


@pytest.fixture(scope="module")
def labels(net, images):
    return np.argmax(np.asarray(net(images)), axis=-1)


def loss_and_gradient(net, images, labels):
    def total(images):
        each = jax.vmap(attacks.cross_entropy)(net(images), labels)
        return each.sum(), each

    (_, each), gradient = jax.value_and_grad(total, has_aux=True)(images)
    return np.asarray(each), np.asarray(gradient)


def test_fgsm_linf(net, images, labels):
    _, gradient = loss_and_gradient(net, images, labels)
    result = attacks.fgsm(attacks.linf(0.05))(net, images, labels, KEY)
    np.testing.assert_allclose(result.images, np.clip(images + 0.05 * np.sign(gradient), 0, 1), atol=1e-6)
    assert np.all(result.steps == 1)


def test_fgsm_l2(net, images, labels):
    # The predicted class has no direction to six digits: its gradient is p - 1, of which little is left where p is
    # almost 1, and what is left depends on the rounding of the machine.
    wrong = (labels + 1) % 3
    _, gradient = loss_and_gradient(net, images, wrong)
    unit = gradient / np.linalg.norm(gradient.reshape(len(images), -1), axis=1)[:, None, None, None]
    result = attacks.fgsm(attacks.l2(0.6))(net, images, wrong, KEY)
    np.testing.assert_allclose(result.images, np.clip(images + 0.6 * unit, 0, 1), atol=1e-6)


def test_fgsm_l1_changes_one_pixel(net, images, labels):
    _, gradient = loss_and_gradient(net, images, labels)
    result = attacks.fgsm(attacks.l1(0.4))(net, images, labels, KEY)
    expected = images.copy().reshape(len(images), -1)
    flat = gradient.reshape(len(images), -1)
    largest = np.argmax(np.abs(flat), axis=1)
    rows = np.arange(len(images))
    expected[rows, largest] = np.clip(expected[rows, largest] + 0.4 * np.sign(flat[rows, largest]), 0, 1)
    np.testing.assert_allclose(result.images, expected.reshape(images.shape), atol=1e-5)


@pytest.mark.parametrize("targeted", [False, True])
def test_bim_written_out(net, images, labels, targeted):
    epsilon, step_size = 0.05, 0.02
    wanted = (labels + 1) % 3 if targeted else labels
    point = images
    for _ in range(4):
        _, gradient = loss_and_gradient(net, point, wanted)
        moved = point + (-1 if targeted else 1) * step_size * np.sign(gradient)
        point = np.clip(np.clip(moved, images - epsilon, images + epsilon), 0, 1)
    attack = attacks.bim(attacks.linf(epsilon), num_steps=4, step_size=step_size, targeted=targeted)
    result = attack(net, images, wanted, KEY)
    np.testing.assert_allclose(result.images, point, atol=1e-6)
    np.testing.assert_array_equal(result.success, (np.argmax(net(point), axis=-1) == wanted) == targeted)
    assert np.any(result.success)


def test_pgd_starts_at_a_sample_or_at_the_given_start(net, images, labels):
    threat_model = attacks.linf(0.05)
    still = attacks.pgd(threat_model, num_steps=1, step_size=0.0)
    keys = am.keys_of(range(12))
    np.testing.assert_array_equal(still(net, images, labels, keys).images, jax.vmap(threat_model.sample)(images, keys))
    start = am.awkward_images(12, seed=9)
    projected = still(net, images, labels, KEY, start).images
    np.testing.assert_array_equal(projected, jax.vmap(threat_model.project)(images, start))


ATTACKS = {
    "pgd": lambda norm, returns: attacks.pgd(
        MAKE[norm](EPSILON[norm]), num_steps=12, step_size=EPSILON[norm] * 0.9, returns=returns
    ),
    "auto_pgd": lambda norm, returns: attacks.auto_pgd(MAKE[norm](EPSILON[norm]), num_steps=12, returns=returns),
}


@pytest.fixture(scope="module", params=[("pgd", "l2"), ("auto_pgd", "linf")], ids="-".join)
def observed(request, net, images, labels):
    """All points that an attack looked at, and what it returns under each rule, all by one program."""
    name, norm = request.param
    keys = am.keys_of(range(12))
    variants = {returns: ATTACKS[name](norm, returns) for returns in KEEP_RULES}
    threat_model = variants["last"].threat_model
    start = jax.vmap(threat_model.sample if name == "pgd" else threat_model.surface)(images, keys)

    @jax.jit
    def run(images, labels, keys):
        later = attacks.trajectory(variants["last"], net, images, labels, keys).point
        return later, {rule: attack(net, images, labels, keys).images for rule, attack in variants.items()}

    later, returned = jax.device_get(run(images, labels, keys))
    return np.concatenate([start[None], later[:-1]]), returned


@pytest.mark.parametrize("returns", KEEP_RULES)
def test_returns_the_observed_point_it_should(net, images, labels, observed, returns):
    """Against a plain loop over all points that the attack looked at."""
    points, returned = observed[0], observed[1][returns]
    assert len(points) == 13
    losses, wrong = zip(
        *((loss_and_gradient(net, p, labels)[0], np.argmax(net(p), axis=-1) != labels) for p in points), strict=True
    )
    losses, wrong = np.asarray(losses), np.asarray(wrong)
    assert 0 < np.sum(wrong) < wrong.size
    everything = np.arange(len(points))
    for i in range(len(images)):
        successes = everything[wrong[:, i]]
        candidates = successes if len(successes) else everything
        expected = {
            "best": candidates[np.argmax(losses[candidates, i])],
            "highest_loss": np.argmax(losses[:, i]),
            "latest_success": successes[-1] if len(successes) else 0,
            "last": everything[-1],
        }[returns]
        returned_index = np.argmin(np.max(np.abs(points[:, i] - returned[i]), axis=(1, 2, 3)))
        np.testing.assert_allclose(points[returned_index, i], returned[i], atol=1e-6)
        if returns in ("best", "highest_loss"):
            # Of two points with almost the same loss, either may be returned.
            assert losses[returned_index, i] == pytest.approx(losses[expected, i], abs=1e-6)
            assert wrong[returned_index, i] == wrong[expected, i]
        else:
            np.testing.assert_allclose(points[expected, i], returned[i], atol=1e-6)


@pytest.mark.parametrize(
    ("returns", "seen", "expected"),
    [
        ("best", [(1, False), (5, False), (3, False)], 1),
        ("best", [(1, False), (2, True), (5, False), (3, True), (2.5, True)], 3),
        ("best", [(1, True), (1, True)], 0),
        ("highest_loss", [(1, False), (2, True), (5, False), (3, True)], 2),
        ("latest_success", [(1, False), (2, True), (5, False), (1, True), (9, False)], 3),
        ("latest_success", [(1, False), (2, False)], "start"),
        ("last", [(1, True), (5, True), (0, False)], 2),
    ],
)
def test_keep_rules_on_hand_made_points(returns, seen, expected):
    kept = unobserved(np.full((1, 1, 1), -1, np.float32), np.float32)
    for index, (loss, success) in enumerate(seen):
        new = Candidate(np.full((1, 1, 1), index, np.float32), np.float32(loss), np.asarray(success))
        kept = keep_rule(returns)(kept, new)
    assert float(kept.image[0, 0, 0]) == (-1 if expected == "start" else expected)
    if expected != "start":
        assert (float(kept.loss), bool(kept.success)) == seen[expected]


def test_predicted_labels(net, images, labels):
    wrong = (labels + 1) % 3
    attack = attacks.bim(attacks.linf(0.05), num_steps=3, step_size=0.02)
    given = attack(net, images, labels, KEY)
    predicted = attacks.with_predicted_labels(attack)(net, images, wrong, KEY)
    np.testing.assert_array_equal(predicted.images, given.images)
    np.testing.assert_array_equal(predicted.success, given.success)


def test_an_attack_on_predicted_labels_can_make_a_wrong_answer_right():
    """Two classes: away from the wrong one is into the right one, which an attack with true labels never does."""
    images = am.gray_images()
    model = am.random_linear(images, num_classes=2)
    predicted = np.argmax(model(images), axis=-1)
    is_wrong = np.arange(len(images)) < 3
    labels = np.where(is_wrong, 1 - predicted, predicted)
    bounds = am.lower_bounds(model, images, predicted, "linf")
    attack = attacks.fgsm(attacks.linf(1.05 * float(bounds.max())))
    flattering = attacks.with_predicted_labels(attack)(model, images, labels, KEY)
    np.testing.assert_array_equal(np.argmax(flattering.logits, axis=-1) == labels, is_wrong)
    assert np.all(flattering.success), "it is the predictions that have been left"
    honest = attack(model, images, labels, KEY)
    assert np.all(honest.success) and np.all(np.argmax(honest.logits, axis=-1) != labels)


def targets_of(target, net, images, labels):
    clean = np.asarray(net(images))
    if target == "next":
        return (labels + 1) % 3
    if target == "least_likely":
        return np.argmin(np.where(np.arange(3) == labels[:, None], np.inf, clean), axis=-1)
    keys = am.keys_of(range(12))
    aim = attacks.AIMS[target]
    return np.asarray([aim(attacks.Problem(*args, None)) for args in zip(images, labels, keys, clean, strict=True)])


@pytest.mark.parametrize("target", attacks.AIMS)
def test_one_step_towards_the_target_and_away_from_the_label(net, images, labels, target):
    wanted = targets_of(target, net, images, labels)
    assert np.all(wanted != labels)
    _, gradient = loss_and_gradient(net, images, wanted)
    attack = attacks.one_step_target_class(attacks.linf(0.05), target=target)
    result = attack(net, images, labels, am.keys_of(range(12)))
    np.testing.assert_allclose(result.images, np.clip(images - 0.05 * np.sign(gradient), 0, 1), atol=1e-6)
    np.testing.assert_array_equal(result.success, np.argmax(result.logits, axis=-1) != labels)
    explicit = attacks.fgsm(attacks.linf(0.05), targeted=True)(net, images, wanted, KEY)
    np.testing.assert_array_equal(result.images, explicit.images)


def test_random_classes_are_uniform_over_the_others_and_new_for_every_key():
    logits = np.zeros(4, np.float32)

    def draw(key):
        return attacks.random_class(attacks.Problem(np.zeros((1, 1, 1)), np.int32(2), key, logits, None))

    counts = np.bincount(np.asarray(jax.vmap(draw)(jax.random.split(KEY, 3000))), minlength=4)
    assert counts[2] == 0
    assert np.all(np.abs(counts[[0, 1, 3]] - 1000) < 4 * np.sqrt(3000 * 2 / 9))


def test_the_least_likely_class_is_never_the_label():
    def aim(label):
        logits = np.float32([0.5, -1.0, 0.0])
        return int(attacks.least_likely_class(attacks.Problem(np.zeros((1, 1, 1)), np.int32(label), KEY, logits, None)))

    assert [aim(label) for label in range(3)] == [1, 2, 1]


def test_pgd_with_an_aim_ascends_the_targeted_loss(net, images, labels):
    options = {"num_steps": 4, "step_size": 0.02}
    aimed = attacks.bim(attacks.linf(0.05), aim=attacks.next_class, **options)(net, images, labels, KEY)
    targeted = attacks.bim(attacks.linf(0.05), targeted=True, **options)(net, images, (labels + 1) % 3, KEY)
    np.testing.assert_array_equal(aimed.images, targeted.images)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: attacks.one_step_target_class(attacks.linf(0.1), target="second"),
            "target must be one of least_likely, random, next or an aim, got 'second'",
        ),
        (lambda: attacks.fgsm(attacks.linf(0.1), targeted=True, aim=attacks.next_class), "either targeted=True or aim"),
        (lambda: attacks.fgsm(attacks.linf(0.1), loss="kl"), "one of ce, dlr or a function"),
        (lambda: attacks.one_step_target_class(attacks.linf(np.inf)), "fgsm needs a finite epsilon"),
    ],
)
def test_mistakes(build, message):
    with pytest.raises(ValueError, match=message):
        build()
