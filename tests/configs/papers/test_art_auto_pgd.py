"""AutoPGD with the rules of the Adversarial Robustness Toolbox, against a plain loop over images and batches."""

import jax
import numpy as np
import pytest

from advjax import attacks
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
