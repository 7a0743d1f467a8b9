"""AutoPGD with the rules of the Adversarial Robustness Toolbox, against a plain loop over images and batches."""

import jax
import numpy as np
import pytest

from advjax import attacks
from advjax.experiment.build_attack import build_attack, single_attack
from advjax.types import UserError
from support import attack_models as am
from support.files import module_from
from support.paths import REPOSITORY

paper = module_from(REPOSITORY / "configs" / "papers" / "fixer" / "art_auto_pgd.py")
EPSILON = 0.004


def test_checkpoints_of_25_steps():
    assert paper.checkpoints(25) == (0, 6, 11, 15, 18, 20, 22, 24, 25)


@pytest.fixture(scope="module")
def net():
    return am.smooth_net(seed=1)


def problem(net, count=11):
    images = am.gray_images(count, seed=5)
    labels = np.array(np.argmax(net(images), axis=-1))
    labels[3] = (labels[3] + 1) % 3
    return images, labels, am.keys_of(range(count))


def mean_loss(net, points, labels):
    return float(np.mean(jax.vmap(attacks.cross_entropy)(net(points), labels)))


def one_batch(net, images, labels, begin, num_steps, step_size):
    """The toolbox's loop over the steps of one batch."""
    gradient_of = jax.grad(lambda x, y: jax.vmap(attacks.cross_entropy)(net(x), y).sum())

    def project(points):
        return np.clip(np.clip(points, images - EPSILON, images + EPSILON), 0, 1).astype(np.float32)

    windows, eta, rises = paper.checkpoints(num_steps), step_size, 0
    point = previous = begin
    for k in range(num_steps):
        plain = project(point + eta * np.sign(gradient_of(point, labels)))
        if k == 0:
            best_loss = loss_at_check = mean_loss(net, point, labels)
            eta_at_check, best, before_best = eta, point, images
            if (loss := mean_loss(net, plain, labels)) >= best_loss:
                best_loss, best, rises = loss, plain, 1
            previous, point = point, plain
            continue
        new = project(point + 0.75 * (plain - point) + 0.25 * (point - previous))
        if (loss := mean_loss(net, new, labels)) > best_loss:
            best_loss, best, before_best, rises = loss, new, point, rises + 1
        previous, point = point, new
        if k in windows:
            window = k - windows[windows.index(k) - 1]
            if rises < 0.75 * window or (eta == eta_at_check and best_loss == loss_at_check):
                eta, point, previous = eta / 2, best, before_best
            rises, eta_at_check, loss_at_check = 0, eta, best_loss
    return point


def toolbox(net, images, labels, keys, num_steps, step_size, num_restarts, batch_size):
    adversarial = images.copy()
    for number in range(num_restarts):
        robust = np.flatnonzero(np.argmax(net(adversarial), axis=-1) == labels)
        keys_now = jax.vmap(lambda key, number=number: jax.random.fold_in(key, number))(keys)
        begin = np.asarray(jax.vmap(attacks.linf(EPSILON).sample)(images, keys_now))
        for first in range(0, len(robust), batch_size):
            chosen = robust[first : first + batch_size]
            last = one_batch(net, images[chosen], labels[chosen], begin[chosen], num_steps, step_size)
            fooled = np.argmax(net(last), axis=-1) != labels[chosen]
            adversarial[chosen] = np.where(fooled[:, None, None, None], last, begin[chosen])
    return adversarial


def test_written_out(net):
    options = {"num_steps": 25, "step_size": 0.003, "num_restarts": 2, "batch_size": 4}
    images, labels, keys = problem(net)
    attack = paper.art_auto_pgd(attacks.linf(EPSILON), **options)
    result = jax.device_get(jax.jit(lambda *arguments: attack(net, *arguments))(images, labels, keys))
    expected = toolbox(net, images, labels, keys, **options)
    assert 1 < np.sum(result.success) < len(images) - 1
    np.testing.assert_array_equal(result.success, np.argmax(net(expected), axis=-1) != labels)
    # Rounding may turn the sign of a gradient near 0.
    assert np.mean(np.abs(result.images - expected).max(axis=(1, 2, 3)) < 1e-5) >= 0.7
    np.testing.assert_array_equal(result.images[3], images[3])
    assert result.steps[3] == 0
    assert np.all(np.isin(np.delete(result.steps, 3), [25, 50]))
    assert np.all(am.perturbation_sizes(images, result.images, "linf") <= np.float64(np.float32(EPSILON)))


def test_survivors_come_back_as_random_points(net):
    images, labels, keys = problem(net)
    tiny = attacks.linf(1e-5)
    result = paper.art_auto_pgd(tiny, num_steps=3, step_size=1e-5, num_restarts=1)(net, images, labels, keys)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
    starts = np.asarray(jax.vmap(tiny.sample)(images, keys))
    kept = ~np.asarray(result.success)
    assert np.sum(kept) >= 8
    np.testing.assert_array_equal(np.asarray(result.images)[kept], starts[kept])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threat_model": attacks.l1(1.0)}, "needs linf or l2 with a finite epsilon, got l1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        paper.art_auto_pgd(**{"threat_model": attacks.linf(0.1), **options})


def test_a_config_names_it_in_evaluation_and_training():
    described = {"name": paper.ART_AUTO_PGD, "norm": "linf", "epsilon": "8/255", "num_steps": 2, "num_restarts": 3}
    built = build_attack("toolbox", described, "here")
    assert not built.is_ensemble and not built.is_query and len(built.stages) == 1
    # The restarts are its own: each takes the images that are left.
    assert built.stages[0].num_rounds(10) == 1
    assert single_attack(built, "predicted", "here") is not built.attack
    with pytest.raises(UserError, match=r"must return an advjax\.attacks\.Attack, or a function"):
        build_attack("toolbox", {**described, "name": f"{__name__}:not_an_attack"}, "here")


def not_an_attack(threat_model, num_steps: int = 1, num_restarts: int = 1):
    return [threat_model]


def test_no_restart_is_made_once_all_images_are_misclassified(net):
    images, _, keys = problem(net)
    wrong = (np.argmax(net(images), axis=-1) + 1) % 3
    result = paper.art_auto_pgd(attacks.linf(EPSILON), num_steps=3, num_restarts=2)(net, images, wrong, keys)
    np.testing.assert_array_equal(result.images, images)
    assert result.success.all() and not result.steps.any()


def test_stochastic_models_are_attacked_through_their_mean(net):
    images, labels, keys = problem(net)
    noisy = attacks.expectation(lambda x, rng: net(x + 1e-3 * jax.random.normal(rng, x.shape)), 3)
    options = {"num_steps": 4, "step_size": 0.002, "num_restarts": 2}
    result = jax.jit(lambda keys: paper.art_auto_pgd(attacks.linf(0.05), **options)(noisy, images, labels, keys))(keys)
    assert np.mean(np.asarray(result.success)) > 0.3
