"""Majority votes over the draws of a stochastic model."""

import jax
import jax.numpy as jnp

from advjax.attacks.model_queries import predicted_class
from advjax.defenses.draws import draws
from advjax.types import Array, Key, StochasticLogitsFn


def voted(stochastic_fn: StochasticLogitsFn, num_draws: int) -> StochasticLogitsFn:
    """The fraction of draws that predict each class (Cohen et al. 2019), for prediction only: it has no gradient.

    Attack the draws themselves, through ``attacks.expectation``, or give the vote the gradient of ``averaged`` with
    ``straight_through``.

    Raises:
      ValueError: ``num_draws`` is below 1.
    """
    logits_of = draws(stochastic_fn, num_draws)

    def fractions(images: Array, rng: Key) -> Array:
        logits = logits_of(images, rng)
        return jnp.mean(jax.nn.one_hot(predicted_class(logits), logits.shape[-1]), axis=0)

    return fractions


def majority(logits: Array) -> Array:
    """The class, int32 [n], that most predictions [votes, n, classes] agree on.

    A tie between classes is broken by the highest mean probability.  A NaN in any prediction gives -1, no class.
    """
    votes = jnp.sum(jax.nn.one_hot(predicted_class(logits), logits.shape[-1]), axis=0)
    most = votes == jnp.max(votes, axis=-1, keepdims=True)
    chosen = jnp.argmax(jnp.where(most, jnp.mean(jax.nn.softmax(logits), axis=0), -1), axis=-1)
    return jnp.where(jnp.any(jnp.isnan(logits), axis=(0, 2)), -1, chosen)
