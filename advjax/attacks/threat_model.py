"""Threat models, the sets of allowed images: a norm, a radius and pixel bounds."""

import dataclasses
import math
import warnings

import jax.numpy as jnp
import numpy as np

from advjax.attacks.input_checks import check_bounds, inside_bounds, is_concrete, pixel_range, require_number, rounding
from advjax.attacks.norms import L1, L2, LINF, Norm
from advjax.types import Array, Key


@dataclasses.dataclass(frozen=True)
class ThreatModel:
    """The set ``{x' : ||x' - x|| <= epsilon, bounds[0] <= x' <= bounds[1]}`` around an image ``x``.

    ``epsilon`` is in units of the pixels and may be traced; it is infinite for minimum-norm attacks.  The bounds are
    the same for all pixels and may be infinite, for attacks that can handle that.  All methods take ONE image
    ``[h, w, c]``.

    Raises:
      TypeError: epsilon or bounds are not numbers, or the bounds are traced.
      ValueError: a negative or NaN epsilon, an array of several, or bounds that are not increasing.
    """

    norm: Norm
    epsilon: float | Array
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        check_bounds(self.bounds)
        if not self._is_infinite(self.epsilon):
            require_number("epsilon", self.epsilon, unit=f" (pixels in {list(self.bounds)})")

    @property
    def is_bounded(self) -> bool:
        """False for a minimum-norm threat model, whose epsilon is infinite."""
        return not self._is_infinite(self.epsilon)

    @staticmethod
    def _is_infinite(epsilon):
        # By numpy: inside a jitted function, operations on known arrays of JAX are traced.
        return is_concrete(epsilon) and not np.ndim(epsilon) and bool(np.asarray(epsilon) == math.inf)

    @property
    def pixel_range(self) -> float:
        """``high - low`` of the bounds, by which attacks scale constants in units of the pixels."""
        return pixel_range(self.bounds)

    def project(self, image: Array, candidate: Array) -> Array:
        """Projects ``candidate`` onto the ball, and the result onto the pixel bounds.

        The size of the resulting perturbation, measured in the dtype of the image, never exceeds epsilon, not even by
        rounding: clipping to the bounds only moves pixels towards ``image``, which must be inside them itself.
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
        """True if ``adversarial`` is allowed, up to rounding of the distance.

        Compiled code may compute a slightly larger distance than the exact one, which is why there is a tolerance: an
        image that ``project`` returned is exactly inside and must not count as a failed attack.
        """
        low, high = self.bounds
        inside = jnp.all((adversarial >= low) & (adversarial <= high))
        epsilon = jnp.asarray(self.epsilon, image.dtype)
        forgiven = rounding(image.dtype, self.bounds)
        if not (math.isfinite(low) and math.isfinite(high)):
            # Pixels may be of any size, and so may the rounding of their sum with a perturbation.
            forgiven = forgiven * jnp.maximum(1, jnp.max(jnp.abs(image)))
        return inside & (self.distance(image, adversarial) <= epsilon + forgiven)

    def allows(self, image: Array) -> Array:
        """True for an image that can be attacked: finite, and inside the bounds up to rounding."""
        return jnp.all(inside_bounds(image, self.bounds)) & (jnp.asarray(self.epsilon) >= 0)

    def _perturbed(self, image, rng, draw):
        require(self, "a random start", finite_epsilon=True)
        epsilon = jnp.asarray(self.epsilon, image.dtype)
        return self.project(image, image + draw(rng, image.shape, epsilon).astype(image.dtype))


def require(
    threat_model: ThreatModel, user: str, *norms: str, finite_epsilon: bool = False, finite_bounds: bool = False
) -> None:
    """Raises an error if an attack cannot handle a threat model.

    Args:
      threat_model: given by the user.
      user: the attack, for the message.
      norms: names of the norms it can handle, all if there are none.
      finite_epsilon: whether it needs a finite epsilon.
      finite_bounds: whether it needs finite pixel bounds.

    Raises:
      TypeError: it is something else, such as an epsilon.
      ValueError: another norm, an infinite epsilon or infinite bounds.
    """
    if not isinstance(threat_model, ThreatModel):
        raise TypeError(f"{user} needs a threat model, such as attacks.linf(8 / 255), got {threat_model!r:.100}")
    if (norms and threat_model.norm.name not in norms) or (finite_epsilon and not threat_model.is_bounded):
        needed = " with ".join([" or ".join(norms)] * bool(norms) + ["a finite epsilon"] * finite_epsilon)
        raise ValueError(f"{user} needs {needed}, got {threat_model.norm.name} {threat_model.epsilon}")
    if finite_bounds and not all(math.isfinite(bound) for bound in threat_model.bounds):
        raise ValueError(f"{user} needs finite pixel bounds, got {threat_model.bounds}")


def linf(epsilon: float | Array, bounds: tuple[float, float] = (0.0, 1.0)) -> ThreatModel:
    """Every pixel may change by at most ``epsilon``, e.g. ``linf(8 / 255)``.

    An epsilon beyond the range of the pixels, such as 8 in [0, 1], allows every image: there is a warning.
    """
    threat_model = ThreatModel(LINF, epsilon, bounds)
    if is_concrete(epsilon) and bounds[1] - bounds[0] < float(epsilon) < math.inf:
        warnings.warn(
            f"epsilon {epsilon} allows every image in {list(bounds)}; for 8-bit units in [0, 1], write {epsilon} / 255",
            stacklevel=2,
        )
    return threat_model


def l2(epsilon: float | Array, bounds: tuple[float, float] = (0.0, 1.0)) -> ThreatModel:
    """The Euclidean norm of the perturbation is at most ``epsilon``, e.g. ``l2(0.5)``."""
    return ThreatModel(L2, epsilon, bounds)


def l1(epsilon: float | Array, bounds: tuple[float, float] = (0.0, 1.0)) -> ThreatModel:
    """The absolute changes of all pixels sum to at most ``epsilon``, e.g. ``l1(12)``."""
    return ThreatModel(L1, epsilon, bounds)
