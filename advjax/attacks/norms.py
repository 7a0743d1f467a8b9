"""Norms of perturbations and the geometry of their balls.

A norm is a record of functions of ONE perturbation.  Everything that depends on the norm lives here, so that attacks
need not distinguish norms.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from advjax.attacks.hyperplane_projection import to_hyperplane_l1, to_hyperplane_l2, to_hyperplane_linf
from advjax.types import Array, Key


class Norm(NamedTuple):
    """A norm of perturbations ``[h, w, c]``, and the geometry of its balls."""

    name: str
    size: Callable[[Array], Array]
    """``||d||``."""
    project: Callable[[Array, Array, Array], Array]
    """``(image, candidate, epsilon) ->`` the nearest point of the ball around ``image``; never outside, by rounding."""
    ascent: Callable[[Array], Array]
    """``gradient ->`` the unit perturbation with the largest inner product; 0 for a gradient of 0."""
    sample: Callable[[Key, tuple[int, ...], Array], Array]
    """``(rng, shape, epsilon) ->`` a perturbation distributed uniformly in the ball."""
    surface: Callable[[Key, tuple[int, ...], Array], Array]
    """``(rng, shape, epsilon) ->`` a random perturbation of size epsilon."""
    to_hyperplane: Callable[[Array, Array, Array, tuple[float, float]], Array]
    """``(point, normal, gap, bounds) ->`` the smallest d with ``<normal, d> = gap``, ``point + d`` in the bounds."""
    dense: bool
    """Whether ``ascent`` changes every pixel.  For l1 it changes a single one, so attacks need different steps."""


def _towards(image: Array, delta: Array) -> Array:
    """``image + delta``, one floating-point number closer: ``|result - image| <= |delta|`` in exact arithmetic.

    The rounding error of the sum would tell whether that step is needed, but compilers reassociate and contract such
    expressions, so it cannot be recovered reliably.
    """
    return jnp.nextafter(image + delta, image)


def _shrunk(size: Callable[[Array], Array], image: Array, epsilon: Array) -> Array:
    """A radius that leaves room for rounding of the norm, summed over all pixels, and of ``image + perturbation``.

    The latter changes each pixel by at most half a unit in the last place, and all of them by at most ``eps / 2
    ||image||``.  Moving every pixel towards the image would be as safe, but the attack would drift back with each step.
    """
    rounding = float(jnp.finfo(image.dtype).eps)
    return jnp.maximum(epsilon * (1 - rounding * math.sqrt(image.size)) - rounding / 2 * size(image), 0)


def _project_linf(image, candidate, epsilon):
    radius = jnp.broadcast_to(epsilon, image.shape)
    return jnp.clip(candidate, _towards(image, -radius), _towards(image, radius))


def _project_l2(image, candidate, epsilon):
    delta = candidate - image
    size = _size_l2(delta)
    radius = _shrunk(_size_l2, image, epsilon)
    return jnp.where(size > radius, image + delta * (radius / jnp.where(size > 0, size, 1)), candidate)


def _project_l1(image, candidate, epsilon):
    """Duchi et al. 2008, fig. 1: soft thresholding at the level that leaves a total of epsilon."""
    delta = candidate - image
    radius = _shrunk(_size_l1, image, epsilon)
    magnitudes = jnp.sort(jnp.abs(delta).ravel(), descending=True)
    excess = (jnp.cumsum(magnitudes) - radius) / jnp.arange(1, delta.size + 1)
    last = jnp.sum(magnitudes > excess) - 1
    threshold = jnp.maximum(excess[jnp.maximum(last, 0)], 0)
    shrunk = jnp.sign(delta) * jnp.maximum(jnp.abs(delta) - threshold, 0)
    size = _size_l1(shrunk)
    shrunk = shrunk * jnp.where(size > radius, radius / jnp.where(size > 0, size, 1), 1)
    return jnp.where(_size_l1(delta) > radius, image + shrunk, candidate)


def _size_linf(delta):
    return jnp.max(jnp.abs(delta))


def _size_l2(delta):
    return jnp.sqrt(jnp.sum(delta * delta))


def _size_l1(delta):
    return jnp.sum(jnp.abs(delta))


def _ascent_l2(gradient):
    # Scaling by the largest entry first keeps the squares of tiny gradients from underflowing to 0.
    scaled = gradient / jnp.maximum(_size_linf(gradient), jnp.finfo(gradient.dtype).tiny)
    return scaled / jnp.maximum(_size_l2(scaled), jnp.finfo(gradient.dtype).tiny)


def _ascent_l1(gradient):
    flat = gradient.ravel()
    largest = jnp.argmax(jnp.abs(flat))
    return jnp.zeros_like(flat).at[largest].set(jnp.sign(flat[largest])).reshape(gradient.shape)


def _sample_linf(rng, shape, epsilon):
    return epsilon * jax.random.uniform(rng, shape, minval=-1.0, maxval=1.0)


def _surface_linf(rng, shape, epsilon):
    noise = jax.random.uniform(rng, shape, minval=-1.0, maxval=1.0)
    return epsilon * noise / _size_linf(noise)


def _sample_l2(rng, shape, epsilon):
    direction, radius = jax.random.split(rng)
    return _surface_l2(direction, shape, epsilon) * jax.random.uniform(radius) ** (1 / math.prod(shape))


def _surface_l2(rng, shape, epsilon):
    noise = jax.random.normal(rng, shape)
    return epsilon * noise / _size_l2(noise)


def _sample_l1(rng, shape, epsilon):
    # The first n of n + 1 normalized exponential variables are uniform in the solid simplex.
    signs, magnitudes = jax.random.split(rng)
    magnitude = jax.random.exponential(magnitudes, (math.prod(shape) + 1,))
    magnitude = (magnitude / jnp.sum(magnitude))[:-1].reshape(shape)
    return epsilon * magnitude * jax.random.rademacher(signs, shape)


def _surface_l1(rng, shape, epsilon):
    signs, magnitudes = jax.random.split(rng)
    magnitude = jax.random.exponential(magnitudes, shape)
    return epsilon * magnitude / jnp.sum(magnitude) * jax.random.rademacher(signs, shape)


LINF = Norm("linf", _size_linf, _project_linf, jnp.sign, _sample_linf, _surface_linf, to_hyperplane_linf, dense=True)
L2 = Norm("l2", _size_l2, _project_l2, _ascent_l2, _sample_l2, _surface_l2, to_hyperplane_l2, dense=True)
L1 = Norm("l1", _size_l1, _project_l1, _ascent_l1, _sample_l1, _surface_l1, to_hyperplane_l1, dense=False)
