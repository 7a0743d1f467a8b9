"""The smallest perturbation that takes a point of a box onto a hyperplane, for each norm.

All functions are ``(point, normal, gap, bounds) -> perturbation`` and solve ``min ||d||`` subject to ``<normal, d> =
gap`` and ``bounds[0] <= point + d <= bounds[1]``; where no perturbation reaches the plane, they return the one that
gets nearest to it.  In the solution every pixel moves in the direction that closes the gap, as far as a common level
says or the bounds allow (Croce & Hein 2020b).
"""

import jax
import jax.numpy as jnp

from advjax.types import Array

Bounds = tuple[float, float]


def to_hyperplane_linf(point: Array, normal: Array, gap: Array, bounds: Bounds) -> Array:
    """Every pixel moves by the same amount, or by its room."""
    direction, room = _directions(point, normal, gap, bounds)
    level = _level(jnp.abs(normal), room, jnp.abs(gap))
    return direction * jnp.minimum(level, room)


def to_hyperplane_l2(point: Array, normal: Array, gap: Array, bounds: Bounds) -> Array:
    """Every pixel moves in proportion to the normal, or by its room."""
    # Scaling by the largest entry keeps the squares of tiny gradients from underflowing to 0.
    scale = jnp.maximum(jnp.max(jnp.abs(normal)), jnp.finfo(normal.dtype).tiny)
    normal, gap = normal / scale, gap / scale
    direction, room = _directions(point, normal, gap, bounds)
    slope = jnp.abs(normal)
    level = _level(slope * slope, room / jnp.where(slope > 0, slope, 1), jnp.abs(gap))
    # An infinite level times a slope of 0 would be NaN.
    return direction * jnp.where(slope > 0, jnp.minimum(level * jnp.where(slope > 0, slope, 1), room), 0)


def to_hyperplane_l1(point: Array, normal: Array, gap: Array, bounds: Bounds) -> Array:
    """The pixels with the largest entries of the normal move as far as they can, until the gap is closed."""
    direction, room = (x.ravel() for x in _directions(point, normal, gap, bounds))
    slope = jnp.abs(normal).ravel()
    order = jnp.argsort(slope, descending=True)
    closed = slope[order] * room[order]
    left = jnp.abs(gap) - (jnp.cumsum(closed) - closed)
    moved = jnp.clip(left / jnp.where(slope[order] > 0, slope[order], 1), 0, room[order])
    return (direction * jnp.zeros_like(slope).at[order].set(moved)).reshape(point.shape)


def _directions(point, normal, gap, bounds):
    """The sign of every pixel's move (0 where the normal is 0), and how far it can move."""
    direction = jnp.sign(gap) * jnp.sign(normal)
    low, high = bounds
    room = jnp.where(direction > 0, high - point, point - low)
    return direction, jnp.where(direction == 0, 0, room)


def _level(weights: Array, caps: Array, total: Array) -> Array:
    """The smallest level with ``sum(weights * min(level, caps)) >= total``; infinite if there is none.

    Newton's method from 0.  The sum is concave and piecewise linear in the level, so the iterates rise to the solution
    and are exact once the set of pixels below their caps stays the same: a handful of passes, where sorting would cost
    more.
    """

    def rise(carry):
        level, _ = carry
        below = caps > level
        slope = jnp.sum(jnp.where(below, weights, 0))
        rest = total - jnp.sum(jnp.where(below, 0, weights * caps))
        solution = jnp.where(slope > 0, rest / jnp.where(slope > 0, slope, 1), jnp.inf)
        return jnp.maximum(level, solution), solution > level

    # A start that depends on the data, so that the loop also runs under shard_map.
    start = jnp.zeros_like(total) * jnp.sum(caps)
    return jax.lax.while_loop(lambda carry: carry[1], rise, (start, start >= 0))[0]
