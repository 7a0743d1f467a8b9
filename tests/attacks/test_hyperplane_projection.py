"""The smallest way to a hyperplane inside a box, against the conditions that say it is the smallest."""

import jax
import numpy as np
import pytest

from advjax.attacks import L1, L2, LINF
from support import attack_models as am

NORMS = {"linf": LINF, "l2": L2, "l1": L1}
BOUNDS = (0.0, 1.0)
every_norm = pytest.mark.parametrize("norm", NORMS)


def problems(count=64, seed=0):
    """Images with many pixels at the bounds, normals with zeros, and gaps of which most can be closed."""
    random = np.random.default_rng(seed)
    points = am.awkward_images(count, seed).astype(np.float64)
    normals = random.normal(size=points.shape) * random.choice([0, 1, 1e-6], points.shape, p=[0.2, 0.7, 0.1])
    room = np.where(normals > 0, 1 - points, points)
    reach = np.sum(np.abs(normals) * room, axis=(1, 2, 3))
    shares = np.linspace(0, 1.2, count)
    return points, normals, shares * reach, shares


def solve(norm, points, normals, gaps):
    with jax.enable_x64(True):
        run = jax.jit(jax.vmap(lambda *arguments: NORMS[norm].to_hyperplane(*arguments, BOUNDS)))
        return np.asarray(run(points, normals, gaps))


@every_norm
@pytest.mark.parametrize("side", [1, -1])
def test_reaches_the_plane_inside_the_box(norm, side):
    points, normals, gaps, shares = problems()
    if side < 0:
        # The same planes from the other side.
        points, gaps = 1 - points, -gaps
    found = solve(norm, points, normals, gaps)
    moved = points + found
    assert np.all((moved >= -1e-12) & (moved <= 1 + 1e-12))
    reached = np.sum(normals * found, axis=(1, 2, 3))
    possible = shares <= 1
    np.testing.assert_allclose(reached[possible], gaps[possible], rtol=1e-9)
    # Out of reach: every pixel that matters goes to its bound.
    room = np.where(normals * side > 0, 1 - points, points)
    everything = side * np.sign(normals) * room
    np.testing.assert_allclose(found[~possible], everything[~possible], atol=1e-12)
    assert np.sum(~possible) > 5


@every_norm
def test_nothing_on_the_plane_is_closer(norm):
    """A multiplier l with ``d = argmin ||d|| - l <normal, d>`` in the box proves that d is optimal (KKT)."""
    points, normals, gaps, shares = problems()
    found = solve(norm, points, normals, gaps)
    for point, normal, d, share in zip(points, normals, found, shares, strict=True):
        if not 0 < share < 1:
            continue
        room = np.where(normal > 0, 1 - point, point)
        free = (np.abs(d) < room - 1e-9) & (normal != 0)
        size = np.abs(d)
        if norm == "linf":
            # Whoever can still move has moved by the largest amount.
            np.testing.assert_allclose(size[free], size.max(), rtol=1e-9)
        elif norm == "l2":
            # Whoever can still move has moved in proportion to the normal, and the others by no more than that.
            slopes = size[free] / np.abs(normal[free])
            np.testing.assert_allclose(slopes, slopes.max(), rtol=1e-6)
            assert np.all(size[normal != 0] <= slopes.max() * np.abs(normal[normal != 0]) * (1 + 1e-6) + 1e-12)
        else:
            # At most one pixel stops on its way, and nobody moves whose normal is smaller than that of one who could.
            assert np.sum(free & (size > 0)) <= 1
            assert np.abs(normal[size > 0]).min() >= np.abs(normal[free]).max() - 1e-12


@every_norm
def test_float32_and_degenerate_problems(norm):
    points = am.awkward_images(4)
    zeros = np.zeros_like(points)
    run = jax.vmap(lambda *arguments: NORMS[norm].to_hyperplane(*arguments, BOUNDS))
    ones = np.ones(4, np.float32)
    assert not np.any(run(points, zeros, ones))
    assert not np.any(run(points, zeros + 1, 0 * ones))
    tiny = np.asarray(run(points, zeros + np.float32(1e-30), np.float32(1e-30) * ones))
    np.testing.assert_allclose(np.sum(tiny, axis=(1, 2, 3)), 1, rtol=1e-4)
