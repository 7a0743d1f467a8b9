"""Images on which an attack made no progress are told from robust ones: without flattering, without false alarms."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks import combine, runner
from advjax.attacks.course import NO_PROGRESS, PROGRESS, UNKNOWN
from support import attack_models as am
from support.reference import reference_networks

EPSILON, COUNT, CLASSES = 0.05, 6, 4
IMAGES = am.gray_images(COUNT)
NET = am.smooth_net(num_classes=CLASSES)
LABELS = np.argmax(NET(IMAGES), axis=-1)
LINF, L2, L1 = attacks.linf(EPSILON), attacks.l2(0.2), attacks.l1(0.5)
ATTACKS = {
    "fgsm": attacks.fgsm(LINF),
    "pgd": attacks.pgd(LINF, num_steps=6, step_size=0.02),
    "pgd last": attacks.pgd(LINF, num_steps=6, step_size=0.02, returns="last"),
    "auto_pgd": attacks.auto_pgd(LINF, num_steps=6),
    "auto_pgd dlr": attacks.auto_pgd(L2, num_steps=6, loss="dlr", aim=attacks.next_likely_class(1)),
    "auto_pgd_l1": attacks.auto_pgd_l1(L1, num_steps=6),
    "auto_pgd_l1 wide": attacks.auto_pgd_l1_large_epsilon(L1, num_steps=6),
    "deepfool": attacks.deepfool(attacks.l2(np.inf), num_steps=3),
    "fab": attacks.fab(LINF, num_steps=3),
    "fab restarts": attacks.fab(LINF, num_steps=3, random_start=True),
    "carlini_wagner_l2": attacks.carlini_wagner_l2(attacks.l2(np.inf), num_steps=3, binary_search_steps=2),
    "restarts": attacks.with_restarts(attacks.pgd(LINF, num_steps=2, step_size=0.02), 2),
    "worst of": attacks.worst_of(attacks.fgsm(LINF), attacks.square(LINF, num_queries=3)),
}
"""With and without random starts, by losses, differences and searches."""
ASCENDING = ["pgd", "pgd last", "auto_pgd", "auto_pgd dlr", "auto_pgd_l1"]


def robust(logits_fn, to=1e-3):
    """The same classes, with so little of the images that nothing fools it."""
    return lambda images: 5 * jax.nn.one_hot(LABELS[: len(images)], CLASSES) + to * logits_fn(images)


def masked(logits_fn):
    return lambda images: logits_fn(jax.lax.stop_gradient(images))


def misleading(logits_fn):
    """Gradients of the opposite sign, as a wrong backward pass gives them."""
    flip = jax.custom_vjp(lambda images: images)
    flip.defvjp(lambda images: (images, None), lambda _, cotangent: (-cotangent,))
    return lambda images: logits_fn(flip(images))


def side_by_side(models):
    """Each model on its own part of the batch."""
    return lambda images: jnp.concatenate(
        [model(part) for model, part in zip(models, jnp.split(images, len(models)), strict=True)]
    )


def run(attack, logits_fn, in_stages, labels=LABELS, copies=1, **options):
    """``progress`` [n] of an attack by itself, on copies of the images, or as a stage; and the warnings about it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if in_stages:
            threat_model = getattr(attack, "threat_model", LINF)
            stages = (combine.restarts("it", attack, 2),)
            options = {"batch_size": COUNT, "devices": jax.devices()[:1], "survivors_only": False, **options}
            found = runner.run_stages(stages, threat_model, logits_fn, IMAGES, labels, **options)
            progress = found.progress[:, 0]
        else:
            images, labels = np.tile(IMAGES, (copies, 1, 1, 1)), np.tile(labels, copies)
            progress = np.asarray(attack(logits_fn, images, labels, jax.random.key(0)).progress)
    return progress, [str(entry.message) for entry in caught if "no progress" in str(entry.message)]


def alone_and_in_stages(*in_stages):
    """All attacks by themselves; some in the runner, which takes them all the same way."""
    cases = [*((name, False) for name in ATTACKS), *((name, True) for name in in_stages)]
    return pytest.mark.parametrize(("name", "in_stages"), cases)


@alone_and_in_stages("pgd", "fab restarts", "worst of")
def test_masked_gradients_are_said_whatever_the_start(name, in_stages):
    progress, messages = run(ATTACKS[name], masked(robust(NET)), in_stages)
    np.testing.assert_array_equal(progress, NO_PROGRESS)
    who, what = (
        ("attacks", f"{COUNT} robust images (it on {COUNT})") if in_stages else ("the attack", f"{COUNT} images")
    )
    assert len(set(messages)) == 1
    assert messages[0].startswith(f"{who} made no progress on {COUNT} of {what}: their gradients are zero, or")


@alone_and_in_stages("pgd", "fab")
def test_neither_ordinary_nor_robust_models_are_suspected(name, in_stages):
    """Not even one whose gradients are tiny."""
    models = (NET, robust(NET), robust(NET, 1e-12))
    # An attack by itself compiles its steps anew for every model; here, one call attacks them all.
    groups = [(model, 1) for model in models] if in_stages else [(side_by_side(models), len(models))]
    for logits_fn, copies in groups:
        progress, messages = run(ATTACKS[name], logits_fn, in_stages, copies=copies)
        assert len(progress) == copies * COUNT
        np.testing.assert_array_equal(progress, PROGRESS)
        assert not messages


@pytest.mark.parametrize("name", ASCENDING)
def test_gradients_that_only_decrease_the_loss_are_said(name):
    progress, messages = run(ATTACKS[name], misleading(robust(NET, 0.1)), in_stages=False)
    np.testing.assert_array_equal(progress, NO_PROGRESS)
    assert len(messages) == 1


def test_one_long_step_that_overshoots_is_no_sign():
    wave = lambda images: robust(lambda x: jnp.sin(300 * NET(x)), 0.1)(images)  # noqa: E731
    progress, messages = run(attacks.bim(LINF, num_steps=4, step_size=EPSILON), misleading(wave), in_stages=False)
    np.testing.assert_array_equal(progress, PROGRESS)
    assert not messages


def test_it_is_unknown_where_there_is_nothing_to_follow():
    """Query attacks follow no gradients, and in a ball of size 0 nothing can change."""
    for attack in (attacks.square(LINF, num_queries=3), attacks.fgsm(attacks.linf(0.0))):
        progress, messages = run(attack, masked(robust(NET)), in_stages=False)
        np.testing.assert_array_equal(progress, UNKNOWN)
        assert not messages


def test_each_image_is_judged_by_itself():
    """A success is no failure, whatever led to it; and labels that are wrong from the start need no attack."""
    flat = robust(NET)

    def half_masked(images):
        is_masked = jnp.arange(len(images)) % 2 == 0
        return jnp.where(is_masked[:, None], jax.lax.stop_gradient(flat(images)), flat(images))

    labels = np.where(np.arange(COUNT) < 2, (LABELS + 1) % CLASSES, LABELS)
    expected = np.where((np.arange(COUNT) % 2 == 0) & (labels == LABELS), NO_PROGRESS, PROGRESS)
    for until_success in (False, True):
        with pytest.warns(UserWarning, match=f"no progress on {np.sum(expected == NO_PROGRESS)} of {COUNT} images"):
            result = ATTACKS["pgd"](half_masked, IMAGES, labels, jax.random.key(0), until_success=until_success)
        np.testing.assert_array_equal(result.progress, expected)


def test_nan_gradients_are_said_once():
    poisoned = lambda images: robust(NET)(images + 0 * jnp.sqrt(jnp.abs(images - images)))  # noqa: E731
    with pytest.warns(UserWarning, match="NaN or infinite") as caught:
        result = ATTACKS["pgd"](poisoned, IMAGES, LABELS, jax.random.key(0))
    np.testing.assert_array_equal(result.progress, NO_PROGRESS)
    assert len(caught) == 1


def test_a_stage_that_makes_progress_speaks_for_the_image(tmp_path):
    """A saturated softmax stops the cross-entropy, and not the difference of logits."""
    saturated = lambda images: 1e5 * robust(NET)(images)  # noqa: E731
    stages = tuple(combine.restarts(loss, attacks.auto_pgd(LINF, num_steps=5, loss=loss), 1) for loss in ("ce", "dlr"))
    options = {"batch_size": COUNT, "devices": jax.devices()[:1], "state_file": tmp_path / "store"}
    arguments = stages, LINF, saturated, IMAGES, LABELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = runner.run_stages(*arguments, **options)
        # Progress is stored, too.
        again = runner.run_stages(*arguments, **options, progress=lambda at: pytest.fail("attacked again"))
    np.testing.assert_array_equal(found.progress[:, 1], PROGRESS)
    np.testing.assert_array_equal(again.progress, found.progress)
    assert not np.any(found.without_progress)


def test_a_stochastic_model_is_not_misled_by_chance():
    def noisy(images, rng):
        return robust(NET)(images) + jax.random.normal(rng, (len(images), CLASSES))

    progress, messages = run(ATTACKS["pgd"], attacks.expectation(noisy, 2), in_stages=False)
    np.testing.assert_array_equal(progress, PROGRESS)
    progress, messages = run(
        ATTACKS["pgd"], attacks.expectation(lambda x, rng: noisy(jax.lax.stop_gradient(x), rng), 2), in_stages=False
    )
    assert np.sum(progress == NO_PROGRESS) and len(messages) == 1


TRAINED = [
    ("cifar_cnn_std", 8 / 255),
    # So small that most images stay as they are classified, confidently.
    ("cifar_cnn_std", 0.5 / 255),
    ("cifar_cnn_at", 8 / 255),
    ("mnist_cnn_at", 0.25),
    ("mnist_cnn_at", 0.02),
]


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize(("name", "epsilon"), TRAINED)
def test_trained_networks_are_not_suspected(name, epsilon, shared):
    """Undefended and adversarially trained ones, on real images."""
    networks, data = reference_networks(shared), np.load(shared / "reference" / f"{name}_images.npz")
    images, labels = data["images"][:48].astype(np.float32) / 255, data["labels"][:48].astype(np.int32)
    logits_fn, ball = functools.partial(networks.NETWORKS[name], networks.load(name)), attacks.linf(epsilon)
    tried = {
        "fgsm": attacks.fgsm(ball),
        "pgd": attacks.pgd(ball, num_steps=10, step_size=epsilon / 4),
        "pgd with long steps": attacks.pgd(ball, num_steps=10, step_size=epsilon),
        "auto_pgd": attacks.auto_pgd(ball, num_steps=10),
        "auto_pgd in few steps": attacks.auto_pgd(ball, num_steps=5),
        "dlr": attacks.auto_pgd(ball, num_steps=10, loss="dlr"),
        "towards the last class": attacks.auto_pgd(ball, num_steps=10, loss="dlr", aim=attacks.next_likely_class(9)),
        "deepfool": attacks.deepfool(attacks.linf(np.inf), num_steps=3),
    }
    for attack in tried.values():
        result = jax.jit(functools.partial(attack, logits_fn))(images, labels, jax.random.key(0))
        np.testing.assert_array_equal(result.progress, PROGRESS)
