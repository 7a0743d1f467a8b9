"""PGD as the mixup report (001) has it in its code, which is not the attack that its text describes.

The ball is that of a noisy copy of the image, and the search begins at the image itself, so a result may be twice the
radius away from it.  On CIFAR-10 all of it, the clip to [0, 1] included, happens to images that are normalized
already, which the clip changes more than the attack does.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks import Attack, Problem, ThreatModel, cross_entropy
from advjax.attacks.candidate import Observed
from advjax.types import Array

VERSIONS = {"v1": 255.0, "v2": 1.0}
"""Upper end of what noisy images are clipped to; the earlier version has that of 8-bit images."""


class Ball(NamedTuple):
    """The rules of the search: lengths in units of normalized images, images in pixels in [0, 1].

    ``x -> (x - mean) / std`` normalizes, with one number for each channel or for all; 0 and 1 leave pixels as they are.
    """

    radius: float
    step_size: float
    version: str
    mean: Sequence[float]
    std: Sequence[float]

    def center(self, images: Array, noise: Array) -> Array:
        """The noisy images ``clip(x + radius noise)``, noise in [-1, 1], around which the balls are."""
        mean, std = self._of(images)
        return jnp.clip(images + self.radius * std * noise, mean, mean + VERSIONS[self.version] * std)

    def moved(self, points: Array, centers: Array, gradients: Array) -> Array:
        """One step of ``step_size`` up the gradient, back into the ball, then into normalized [0, 1]."""
        mean, std = self._of(points)
        ascended = points + self.step_size * std * jnp.sign(gradients)
        near = centers + jnp.clip(ascended - centers, -self.radius * std, self.radius * std)
        return jnp.clip(near, mean, mean + std)

    @property
    def reach(self) -> float:
        """How far from its image, in pixels and the largest norm, a result may be."""
        low, high = np.asarray(self.mean), np.add(self.mean, self.std)
        if (low <= 0).all() and (high >= 1).all():
            return float(np.max(2 * self.radius * np.asarray(self.std)))
        # Pixels outside [low, high] are moved into it, however far that is.
        return float(max(high.max(), 1 - low.min()))

    def _of(self, images: Array) -> tuple[Array, Array]:
        return jnp.asarray(self.mean, images.dtype), jnp.asarray(self.std, images.dtype)


def ball(
    radius: float, step_size: float, version: str = "v2", mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)
) -> Ball:
    """The rules, checked.

    Raises:
      ValueError: a negative length, a standard deviation that is not positive, or an unknown version.
    """
    if radius < 0 or step_size < 0 or min(std) <= 0:
        raise ValueError(f"radius {radius} and step_size {step_size} must be 0 or more, std {tuple(std)} above 0")
    if version not in VERSIONS:
        raise ValueError(f"version must be {' or '.join(map(repr, VERSIONS))}, got {version!r}")
    return Ball(radius, step_size, version, mean, std)


class State(NamedTuple):
    """State of the attack on one image."""

    point: Array
    best: Observed
    """The latest point at which the model was evaluated."""
    center: Array


def noisy_center_pgd(
    threat_model: ThreatModel,
    *,
    radius: float,
    num_steps: int,
    step_size: float,
    version: str = "v2",
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> Attack:
    """``c = clip(x + u)``, ``z_0 = x``, ``z <- clip(c + clip(z + a sign(grad CE(f(z), y)) - c, -r, r), 0, 1)``.

    As in the code of the report, u uniform in [-r, r]; the last z is the result.

    Args:
      threat_model: linf, of at least the epsilon that results can reach: 2 ``radius`` in pixels.
      radius: r, in units of normalized images.
      num_steps: gradient steps.
      step_size: a, in units of normalized images.
      version: of the clip of noisy images, "v1" to [0, 255] or "v2" to [0, 1].
      mean: of normalization, one for each channel or one for all.
      std: of normalization.

    Raises:
      ValueError: another norm, an epsilon that results can exceed, or a mistake in the rules (``ball``).
    """
    rules = ball(radius, step_size, version, mean, std)
    if threat_model.norm.name != "linf" or not float(threat_model.epsilon) >= rules.reach:
        raise ValueError(
            f"noisy_center_pgd needs linf and an epsilon of at least {rules.reach:g}, which its results reach; "
            f"got {threat_model.norm.name} {threat_model.epsilon}"
        )

    def init(problem: Problem) -> State:
        noise = jax.random.uniform(problem.rng, problem.image.shape, problem.image.dtype, -1, 1)
        point = problem.image if problem.start is None else problem.start
        return State(point, Observed(point), rules.center(problem.image, noise))

    def objective(problem: Problem, state: State, logits: Array) -> Array:
        return cross_entropy(logits, problem.label)

    def observe(problem: Problem, state: State, logits: Array) -> State:
        return state._replace(best=Observed(state.point))

    def move(problem: Problem, state: State, logits: Array, gradient: Array) -> State:
        return state._replace(point=rules.moved(state.point, state.center, gradient))

    return Attack(threat_model, num_steps, init, objective, observe, move)
