"""The windows, schedules and patterns of the Square attack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks.square import _bumps, _odd, _shrinking, _window
from support import attack_models as am

pytestmark = pytest.mark.optimized


def test_schedule_of_auto_attack():
    """The share at each of 5,000 queries: halved after 10, 50, 200, 500, 1000, 2000 and 4000."""
    shares = _shrinking(5000, rescale=False)
    changes = np.flatnonzero(np.diff(shares)) + 1
    np.testing.assert_array_equal(changes, [11, 51, 201, 501, 1001, 2001, 4001])
    np.testing.assert_array_equal(shares[[0, 10, 11, 5000]], [1, 1, 0.5, 1 / 128])


def test_rescaled_schedule_uses_all_levels():
    shares = _shrinking(1000, rescale=True)
    assert shares[0] == 1 and shares[-1] == 2**-9
    assert np.flatnonzero(np.diff(shares))[0] + 1 == 2


@pytest.mark.parametrize("side", [1, 3, 5])
def test_windows_are_squares_everywhere(side):
    windows = np.asarray(jax.vmap(lambda key: _window(key, am.SHAPE, side)[2])(am.keys_of(range(400))))[..., 0]
    assert np.all(windows.sum(axis=(1, 2)) == side * side)
    assert np.all(windows.any(axis=2).sum(axis=1) == side)
    assert np.all(windows.any(axis=1).sum(axis=1) == side)
    # Every place occurs, the last row and column included.
    assert len(np.unique(windows, axis=0)) == (am.SHAPE[0] - side + 1) * (am.SHAPE[1] - side + 1)


def bumps_by_hand(side):
    """Rectangles around the centre of each half, each adding 1 / number^2 (section 4.2)."""

    def half(height):
        pattern = np.zeros((height, side))
        for i in range(max(height // 2, side // 2) + 1):
            rows = slice(max(height // 2 - i, 0), height // 2 + i + 1)
            columns = slice(max(side // 2 - i, 0), side // 2 + i + 1)
            pattern[rows, columns] += 1 / (i + 1) ** 2
        return pattern / np.linalg.norm(pattern)

    pattern = np.concatenate([half(side // 2), -half(side - side // 2)])
    return pattern / np.linalg.norm(pattern)


@pytest.mark.parametrize("side", [3, 4, 5, 9])
def test_bumps(side):
    places = jnp.arange(side)
    np.testing.assert_allclose(_bumps(places, places, jnp.int32(side), jnp.float32), bumps_by_hand(side), atol=1e-6)
    # Somewhere inside an image that is not a square.
    placed = np.asarray(_bumps(jnp.arange(12) - 2, jnp.arange(14) - 5, jnp.int32(side), jnp.float32))
    np.testing.assert_allclose(placed[2 : 2 + side, 5 : 5 + side], bumps_by_hand(side), atol=1e-6)
    assert np.count_nonzero(placed) == side * side


def test_odd_sides():
    assert [_odd(side) for side in (0, 1, 3, 4, 24)] == [3, 3, 3, 5, 25]


@pytest.fixture(scope="module", params=["linf", "l2"])
def recorded(request):
    """A run on images away from the bounds: what was proposed at each query, and what was best."""
    epsilon = {"linf": 0.05, "l2": 0.8}[request.param]
    threat_model = {"linf": attacks.linf, "l2": attacks.l2}[request.param](epsilon)
    net, images = am.smooth_net(seed=2), am.gray_images(6)
    labels = np.argmax(np.asarray(net(images)), axis=-1)
    attack = attacks.square(threat_model, num_queries=60)
    run = jax.jit(lambda keys: attacks.trajectory(attack, net, images, labels, keys))
    return request.param, epsilon, net, images, labels, jax.device_get(run(am.keys_of(range(6))))


def test_every_proposal_uses_the_whole_ball(recorded):
    norm, epsilon, _, images, _, states = recorded
    for proposals in states.point:
        sizes = am.perturbation_sizes(images, proposals, norm)
        assert np.all(sizes <= np.float32(epsilon))
        np.testing.assert_allclose(sizes, epsilon, rtol=1e-4)
    if norm == "linf":
        np.testing.assert_allclose(np.abs(states.point - images), epsilon, rtol=1e-4)


def test_keeps_the_highest_margin(recorded):
    _, _, net, _, labels, states = recorded
    observed = np.stack([jax.vmap(attacks.margin)(net(points), labels) for points in states.point[:-1]])
    best = states.best.loss
    assert np.all(np.diff(best, axis=0) >= 0)
    np.testing.assert_allclose(best[1:], np.maximum(np.maximum.accumulate(observed), best[0]), atol=1e-5)


def test_images_do_not_share_their_windows():
    image = np.repeat(am.gray_images(1), 4, axis=0)
    attack = attacks.square(attacks.linf(0.05), num_queries=3)
    states = attacks.trajectory(attack, am.smooth_net(), image, np.zeros(4, np.int32), am.keys_of(range(4)))
    assert len(np.unique(states.point[0].reshape(4, -1), axis=0)) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attacks.square(attacks.l1(1.0)), "square needs linf or l2 with a finite epsilon, got l1"),
        (lambda: attacks.square(attacks.linf(np.inf)), "finite epsilon"),
        (lambda: attacks.square(attacks.linf(0.1), initial_share=0.0), r"initial_share must be in \(0, 1\], got 0.0"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
