"""The step sizes of AutoPGD, and what it promises beyond the contract of all attacks."""

import jax
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks.auto_pgd import checkpoints
from support import attack_models as am
from support.halving_rule import step_sizes

pytestmark = pytest.mark.optimized

THREAT_MODELS = {"linf": attacks.linf(0.05), "l2": attacks.l2(0.5)}
NUM_STEPS = 20


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [
        (100, (22, 41, 57, 70, 80, 87, 93, 99)),
        (25, (5, 9, 12, 14, *range(15, 26))),
        (20, (4, 7, 9, *range(10, 21))),
        (10, (2, *range(3, 11))),
        (1, (1,)),
    ],
)
def test_checkpoints(num_steps, expected):
    assert checkpoints(num_steps) == expected


@pytest.mark.parametrize("num_steps", range(1, 200, 7))
def test_windows_shrink_to_a_shortest_one(num_steps):
    found = np.asarray((0, *checkpoints(num_steps)))
    windows = np.diff(found)
    assert np.all(np.diff(windows) <= 0)
    assert windows[-1] >= max(int(0.06 * num_steps), 1)
    assert 0 <= num_steps - found[-1] < windows[-1]


class Problem:
    """A smooth network, its images, and one recorded run per norm."""

    def __init__(self):
        self.net = am.smooth_net(seed=1)
        self.images = am.awkward_images(12, seed=6)
        self.labels = np.argmax(np.asarray(self.net(self.images)), axis=-1)
        self.keys = am.keys_of(range(12))

    def trajectory(self, norm, **options):
        attack = attacks.auto_pgd(THREAT_MODELS[norm], num_steps=NUM_STEPS, **options)
        run = jax.jit(lambda *arguments: attacks.trajectory(attack, self.net, *arguments))
        return jax.device_get(run(self.images, self.labels, self.keys))

    def losses(self, points):
        return np.asarray(jax.vmap(attacks.cross_entropy)(self.net(points), self.labels))


@pytest.fixture(scope="module")
def problem():
    return Problem()


@pytest.fixture(scope="module", params=THREAT_MODELS)
def recorded(request, problem):
    return request.param, problem.trajectory(request.param)


def test_first_step_size_is_twice_epsilon(recorded):
    norm, states = recorded
    np.testing.assert_array_equal(states.step_size[0], np.float32(2 * THREAT_MODELS[norm].epsilon))


def test_step_size_option(problem):
    np.testing.assert_array_equal(problem.trajectory("linf", step_size=0.0125).step_size[0], np.float32(0.0125))


def test_step_sizes_are_halved_at_checkpoints_only(recorded):
    _, states = recorded
    ratios = states.step_size[1:] / states.step_size[:-1]
    assert np.all((ratios == 1) | (ratios == 0.5))
    halved_after = np.flatnonzero(np.any(ratios == 0.5, axis=1)) + 1
    assert set(halved_after) <= set(checkpoints(NUM_STEPS))
    assert len(halved_after) > 2


def test_halving_rule_written_out(recorded):
    """The two conditions of algorithm 1, recomputed from the observed losses alone."""
    norm, states = recorded
    expected = step_sizes(states.loss[1:], states.highest.loss, 2 * THREAT_MODELS[norm].epsilon)
    np.testing.assert_array_equal(states.step_size[:-1], expected)


def test_best_loss_never_falls_and_is_the_highest_observed(problem, recorded):
    norm, states = recorded
    start = jax.vmap(THREAT_MODELS[norm].surface)(problem.images, problem.keys)
    observed = np.concatenate([problem.losses(start)[None], states.loss[1:]])
    np.testing.assert_allclose(states.highest.loss, np.maximum.accumulate(observed), rtol=1e-5)


def test_starts_on_the_surface(problem, recorded):
    norm, states = recorded
    start = jax.vmap(THREAT_MODELS[norm].surface)(problem.images, problem.keys)
    np.testing.assert_allclose(states.previous_point[0], start, atol=1e-7)


def test_first_two_steps_written_out(problem, recorded):
    """A full step, then one with 3/4 of the step and 1/4 of the inertia."""
    norm, states = recorded
    threat_model = THREAT_MODELS[norm]
    project = jax.vmap(threat_model.project)
    step_size = 2 * threat_model.epsilon

    def aimed(point):
        gradient = jax.grad(lambda x: jax.vmap(attacks.cross_entropy)(problem.net(x), problem.labels).sum())(point)
        return project(problem.images, point + step_size * jax.vmap(threat_model.norm.ascent)(gradient))

    start = jax.vmap(threat_model.surface)(problem.images, problem.keys)
    first = project(problem.images, aimed(start))
    second = project(problem.images, first + 0.75 * (aimed(first) - first) + 0.25 * (first - start))
    np.testing.assert_allclose(states.point[0], first, atol=1e-6)
    np.testing.assert_allclose(states.point[1], second, atol=1e-6)


@pytest.mark.parametrize("norm", THREAT_MODELS)
def test_returned_loss_is_never_below_that_of_the_start(problem, norm):
    attack = attacks.auto_pgd(THREAT_MODELS[norm], num_steps=3, returns="highest_loss")
    starts = jax.vmap(THREAT_MODELS[norm].sample)(problem.images, problem.keys)
    result = jax.jit(lambda *arguments: attack(problem.net, *arguments))(
        problem.images, problem.labels, problem.keys, starts
    )
    assert np.all(problem.losses(result.images) >= problem.losses(starts) - 1e-6)


def test_loss_may_be_a_function(problem):
    named = problem.trajectory("linf", loss="dlr")
    given = problem.trajectory("linf", loss=attacks.dlr)
    np.testing.assert_array_equal(named.point, given.point)


def step_sizes_while_rising(loss, rho):
    """Steps so small that the loss of a linear model rises with each of them."""
    known = am.known_distance("linf")
    attack = attacks.auto_pgd(attacks.linf(0.1), num_steps=10, loss=loss, rho=rho, step_size=1e-3)
    states = attacks.trajectory(attack, known.model, known.images, known.labels, jax.random.key(0), known.images)
    np.testing.assert_array_equal(np.diff(states.loss[1:], axis=0) > 0, True)
    return states.step_size


def test_never_halves_when_every_step_rises():
    np.testing.assert_array_equal(step_sizes_while_rising("ce", 0.75), np.float32(1e-3))


def test_halves_at_every_checkpoint_when_no_share_of_rises_is_enough():
    # Nothing follows from the checkpoint after the last step.
    halvings = len(checkpoints(10)) - 1
    np.testing.assert_allclose(step_sizes_while_rising("ce", 1.0)[-1], 1e-3 / 2**halvings, rtol=1e-6)


def test_first_step_counts_as_a_rise_only_if_its_loss_is_positive():
    """The margin of a right prediction is negative: one rise in the first window of two steps is not enough."""
    step_sizes = step_sizes_while_rising(attacks.margin, 0.75)
    np.testing.assert_array_equal(step_sizes[:2], np.float32(1e-3))
    np.testing.assert_array_equal(step_sizes[2:], np.float32(5e-4))


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_best_is_never_below_the_start(loss):
    """Where nothing succeeds, "best" is the highest loss that was seen, and the start is the first that is."""
    images, net = am.awkward_images(12, seed=4), am.smooth_net(num_classes=4)
    labels = np.argmax(np.asarray(net(images)), axis=-1)
    threat_model, keys = attacks.linf(0.01), am.keys_of(range(12))
    attack = attacks.auto_pgd(threat_model, num_steps=3, loss=loss, returns="best")
    result = attack(net, images, labels, keys)
    start = jax.vmap(threat_model.surface)(images, keys)
    measure = jax.vmap({"ce": attacks.cross_entropy, "dlr": attacks.dlr}[loss])
    before, after = measure(net(start), labels), measure(result.logits, labels)
    failed = ~np.asarray(result.success)
    assert failed.sum() > 5
    assert np.all(after[failed] >= before[failed])
    assert np.any(after[failed] > before[failed])
