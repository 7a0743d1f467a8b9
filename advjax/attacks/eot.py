"""Expectation over transformation (EOT): attacking the mean over draws of a stochastic model."""

import dataclasses

import jax
import jax.numpy as jnp

from advjax.attacks.input_checks import as_logits, require_count
from advjax.types import Array, Key, StochasticLogitsFn


@dataclasses.dataclass(frozen=True)
class Expectation:
    """The mean of a stochastic model, accepted by every attack and combinator in place of a ``LogitsFn``.

    See ``expectation``.
    """

    stochastic_fn: StochasticLogitsFn
    num_samples: int

    def __post_init__(self):
        require_count("num_samples", self.num_samples)

    def draws(self, images: Array, rngs: Key) -> Array:
        """Logits [n, num_samples, classes].  Each draw has its own key, regardless of the rest of the batch."""

        def draw(image: Array, rng: Key) -> Array:
            return as_logits(self.stochastic_fn(image[None], rng))[0]

        return jax.vmap(
            lambda image, rng: jax.vmap(draw, in_axes=(None, 0))(image, jax.random.split(rng, self.num_samples))
        )(images, rngs)


def expectation(stochastic_fn: StochasticLogitsFn, num_samples: int) -> Expectation:
    """Expectation over transformation (Athalye et al. 2018): attacks the mean over draws of a stochastic model.

    Every query of an attack is answered by ``num_samples`` draws with fresh keys.  The gradient is the mean over the
    draws of the gradients of the loss; the logits are the log of the mean probability.  The logits of the result are
    computed likewise, with keys that the attack has not seen.

    Example::

        result = pgd(linf(8 / 255), num_steps=20, step_size=2 / 255)(expectation(fn, 20), images, labels, rng)
    """
    return Expectation(stochastic_fn, num_samples)


def log_mean_probability(draws: Array) -> Array:
    """Logits [n, classes] of the mean probability, from draws [n, num_samples, classes]."""
    return jax.nn.logsumexp(jax.nn.log_softmax(draws), axis=1) - jnp.log(draws.shape[1])
