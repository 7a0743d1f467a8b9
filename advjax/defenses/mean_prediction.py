"""The mean prediction over the draws of a stochastic model."""

import jax
import jax.numpy as jnp

from advjax.defenses.draws import draws
from advjax.types import Array, Key, StochasticLogitsFn

OVER = ("probabilities", "log_probabilities")


def averaged(stochastic_fn: StochasticLogitsFn, num_draws: int, *, over: str = "probabilities") -> StochasticLogitsFn:
    """The mean prediction of several draws, ``log mean_e softmax f(x; n_e)``.

    Args:
      stochastic_fn: one draw.
      num_draws: E, at least 1.
      over: "probabilities" as in random self-ensembles (Liu et al. 2018), or "log_probabilities" for the mean of the
        log-probabilities, as in paper 004.

    Raises:
      ValueError: ``num_draws`` is below 1, or ``over`` has another value.
    """
    logits_of = draws(stochastic_fn, num_draws)
    if over not in OVER:
        raise ValueError(f"over must be one of {', '.join(OVER)}, got {over!r}")

    def logits_fn(images: Array, rng: Key) -> Array:
        logs = jax.nn.log_softmax(logits_of(images, rng))
        if over == "log_probabilities":
            return jnp.mean(logs, axis=0)
        return jax.nn.logsumexp(logs, axis=0) - jnp.log(num_draws)

    return logits_fn
