"""Which perturbed images are allowed: a norm, a radius and pixel bounds.

A norm is a record of functions about ONE perturbation; everything that depends on the norm lives here, so that no
attack ever asks which norm it has been given.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from advjax.attacks.hyperplane_projection import to_hyperplane_l1, to_hyperplane_l2, to_hyperplane_linf
from advjax.types import Array, Key


class Norm(NamedTuple):
    """A norm on perturbations ``[h, w, c]`` and the geometry of its balls."""

    name: str
    size: Callable[[Array], Array]
    """``||d||``."""
    project: Callable[[Array, Array, Array], Array]
    """``(image, candidate, epsilon) ->`` the nearest point of the ball around ``image``, exactly inside it."""
    ascent: Callable[[Array], Array]
    """The unit perturbation with the largest inner product with a gradient; 0 for a gradient of 0."""
    sample: Callable[[Key, tuple[int, ...], Array], Array]
    """``(rng, shape, epsilon) ->`` a perturbation distributed uniformly in the ball."""
    surface: Callable[[Key, tuple[int, ...], Array], Array]
    """``(rng, shape, epsilon) ->`` a random perturbation of size epsilon."""
    to_hyperplane: Callable[[Array, Array, Array, tuple[float, float]], Array]
    """``(point, normal, gap, bounds) ->`` the smallest d with ``<normal, d> = gap``, ``point + d`` in the bounds."""
    dense: bool
    """Whether ``ascent`` changes every pixel.  That of l1 changes one, so attacks need other steps there."""


@dataclasses.dataclass(frozen=True)
class ThreatModel:
    """The set ``{x' : ||x' - x|| <= epsilon, bounds[0] <= x' <= bounds[1]}`` around an image ``x``.

    ``epsilon`` is in pixel units of [0, 1] and may be traced; ``inf`` stands for a minimum-norm attack.  All methods
    are about one image ``[h, w, c]``.
    """

    norm: Norm
    epsilon: float | Array
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        low, high = self.bounds
        if not low < high:
            raise ValueError(f"bounds must be (low, high) with low < high, got {self.bounds}")
        if is_concrete(self.epsilon) and not float(self.epsilon) >= 0:
            raise ValueError(f"epsilon must be 0 or more (pixels in {list(self.bounds)}), got {self.epsilon}")

    @property
    def is_bounded(self) -> bool:
        """False for a minimum-norm threat model, whose epsilon is infinite."""
        return not (is_concrete(self.epsilon) and math.isinf(float(self.epsilon)))

    def require(self, user: str, *norms: str, finite_epsilon: bool = False) -> None:
        """Raises a ValueError unless the norm is one of ``norms`` (any if there are none), and epsilon finite.

        Args:
          user: what needs it, for the message.
          norms: names of norms.
          finite_epsilon: whether an infinite epsilon is refused.
        """
        if (norms and self.norm.name not in norms) or (finite_epsilon and not self.is_bounded):
            needed = " with ".join([" or ".join(norms)] * bool(norms) + ["a finite epsilon"] * finite_epsilon)
            raise ValueError(f"{user} needs {needed}, got {self.norm.name} {self.epsilon}")

    def project(self, image: Array, candidate: Array) -> Array:
        """The allowed image next to ``candidate``: into the ball first, then into the pixel bounds.

        The size of the result, measured in the dtype of the image, never exceeds epsilon, not even by one rounding:
        clipping to the bounds only moves pixels towards ``image``, which has to be inside them itself.
        """
        if self.is_bounded:
            candidate = self.norm.project(image, candidate, jnp.asarray(self.epsilon, image.dtype))
        return jnp.clip(candidate, *self.bounds)

    def sample(self, image: Array, rng: Key) -> Array:
        """An allowed image, uniform in the ball before it is clipped to the bounds."""
        return self._perturbed(image, rng, self.norm.sample)

    def surface(self, image: Array, rng: Key) -> Array:
        """An allowed image on the sphere of radius epsilon before it is clipped to the bounds."""
        return self._perturbed(image, rng, self.norm.surface)

    def distance(self, image: Array, adversarial: Array) -> Array:
        """``||adversarial - image||`` in float32 (or wider, if the images are)."""
        return self.norm.size(adversarial - image)

    def contains(self, image: Array, adversarial: Array) -> Array:
        """True where ``adversarial`` is allowed, up to the rounding of the distance.

        A compiler may measure a distance a few roundings larger than it is, so a few are forgiven here: what
        ``project`` returns is inside exactly, and must not be taken for a failed attack.
        """
        low, high = self.bounds
        inside = jnp.all((adversarial >= low) & (adversarial <= high))
        epsilon = jnp.asarray(self.epsilon, image.dtype)
        forgiven = 4 * jnp.finfo(image.dtype).eps * (high - low)
        return inside & (self.distance(image, adversarial) <= epsilon + forgiven)

    def _perturbed(self, image, rng, draw):
        self.require("a random start", finite_epsilon=True)
        epsilon = jnp.asarray(self.epsilon, image.dtype)
        return self.project(image, image + draw(rng, image.shape, epsilon).astype(image.dtype))


def linf(epsilon: float | Array, bounds: tuple[float, float] = (0.0, 1.0)) -> ThreatModel:
    """Every pixel may change by at most ``epsilon``, e.g. ``linf(8 / 255)``."""
    return ThreatModel(LINF, epsilon, bounds)


def l2(epsilon: float | Array, bounds: tuple[float, float] = (0.0, 1.0)) -> ThreatModel:
    """The Euclidean length of the perturbation is at most ``epsilon``, e.g. ``l2(0.5)``."""
    return ThreatModel(L2, epsilon, bounds)


def l1(epsilon: float | Array, bounds: tuple[float, float] = (0.0, 1.0)) -> ThreatModel:
    """The absolute changes of all pixels add up to at most ``epsilon``, e.g. ``l1(12)``."""
    return ThreatModel(L1, epsilon, bounds)


def is_concrete(value: object) -> bool:
    """False for a value that JAX is tracing."""
    return not isinstance(value, Tracer)


def _towards(image: Array, delta: Array) -> Array:
    """``image + delta``, one floating-point number short of it: ``|result - image| <= |delta|`` in exact arithmetic.

    Recovering the rounding error of the sum would tell when that one step is needed, but compilers reassociate and
    contract such expressions, and the error with them.
    """
    return jnp.nextafter(image + delta, image)


def _shrunk(size: Callable[[Array], Array], image: Array, epsilon: Array) -> Array:
    """Radius that leaves room for rounding: of the norm, summed over all pixels, and of ``image + perturbation``.

    The latter moves each pixel by at most half a unit in its last place, all of them by at most ``eps / 2 ||image||``.
    Stepping every pixel towards the image would be as safe, but the attack would drift back with each of its steps.
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
    # The first n of n + 1 normalised exponential variables are uniform in the simplex and what is below it.
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
