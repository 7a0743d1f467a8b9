"""Several draws of a stochastic model as one prediction, and gradients for what has none."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from advjax.types import Array, Key, LogitsFn, StochasticLogitsFn

OVER = ("probabilities", "log_probabilities")


def averaged(stochastic_fn: StochasticLogitsFn, num_draws: int, *, over: str = "probabilities") -> StochasticLogitsFn:
    """The mean prediction of several draws: ``log mean_e softmax f(x; n_e)``.

    Args:
      stochastic_fn: one draw.
      num_draws: E, at least 1.
      over: "probabilities" as in random self-ensembles (Liu et al. 2018), or "log_probabilities" for the mean of the
        logarithms, as in paper 004.

    Raises:
      ValueError: no draws, or another value for ``over``.
    """
    _check_draws(num_draws)
    if over not in OVER:
        raise ValueError(f"over must be one of {', '.join(OVER)}, got {over!r}")

    def logits_fn(images: Array, rng: Key) -> Array:
        logs = jax.nn.log_softmax(_draws(stochastic_fn, images, rng, num_draws))
        if over == "log_probabilities":
            return jnp.mean(logs, axis=0)
        return jax.nn.logsumexp(logs, axis=0) - jnp.log(num_draws)

    return logits_fn


def voted(stochastic_fn: StochasticLogitsFn, num_draws: int) -> StochasticLogitsFn:
    """The share of the draws that predict each class (Cohen et al. 2019): no gradient, for prediction alone.

    Attack the draws themselves, through ``attacks.expectation``, or give the vote the gradient of ``averaged`` with
    ``straight_through``.
    """
    _check_draws(num_draws)

    def shares(images: Array, rng: Key) -> Array:
        logits = _draws(stochastic_fn, images, rng, num_draws)
        return jnp.mean(jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1]), axis=0)

    return shares


def straight_through(exact: Callable[..., Array], smooth: Callable[..., Array]) -> Callable[..., Array]:
    """The values of ``exact`` with the gradient of ``smooth``: backward pass differentiable approximation (BPDA).

    For a step of a defence that has no useful gradient, such as quantisation: ``straight_through(quantise, lambda x:
    x)``; or for a whole model (Athalye et al. 2018, section 4.1).
    """

    def function(*arguments: Array) -> Array:
        approximation = smooth(*arguments)
        return approximation + jax.lax.stop_gradient(exact(*arguments) - approximation)

    return function


def per_image(transform: Callable[[Array, Key], Array], logits_fn: LogitsFn) -> StochasticLogitsFn:
    """The logits of randomly transformed images, each with a key of its own."""

    def draw(images: Array, rng: Key) -> Array:
        return logits_fn(jax.vmap(transform)(images, jax.random.split(rng, len(images))))

    return draw


def _draws(stochastic_fn: StochasticLogitsFn, images: Array, rng: Key, num_draws: int) -> Array:
    """Logits [draws, n, classes]."""
    return jax.vmap(stochastic_fn, in_axes=(None, 0))(images, jax.random.split(rng, num_draws))


def _check_draws(num_draws: int) -> None:
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, got {num_draws}")
