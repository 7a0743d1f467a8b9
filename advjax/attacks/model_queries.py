"""Asking a model for logits and gradients, whether it is deterministic or not."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from advjax.types import Array, Key, LogitsFn, StochasticLogitsFn


@dataclasses.dataclass(frozen=True)
class Expectation:
    """A stochastic model that every attack and combination takes in place of a ``LogitsFn``: see ``expectation``."""

    stochastic_fn: StochasticLogitsFn
    num_samples: int

    def __post_init__(self):
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}")

    def draws(self, images: Array, rngs: Key) -> Array:
        """Logits [n, num_samples, classes].  Each draw of each image has its own key, whatever else is in the batch."""

        def draw(image: Array, rng: Key) -> Array:
            return self.stochastic_fn(image[None], rng)[0]

        return jax.vmap(
            lambda image, rng: jax.vmap(draw, in_axes=(None, 0))(image, jax.random.split(rng, self.num_samples))
        )(images, rngs)


def expectation(stochastic_fn: StochasticLogitsFn, num_samples: int) -> Expectation:
    """Expectation over transformation (Athalye et al. 2018): attack the mean over draws of a random model.

    Wherever an attack asks, ``num_samples`` draws with fresh keys answer: the gradient is the mean of the gradients of
    the loss at each draw, and the logits are the logarithm of the mean probability.  So are the logits of the result,
    with keys that the attack has not seen.

    Example::

        result = pgd(linf(8 / 255), num_steps=20, step_size=2 / 255)(expectation(fn, 20), images, labels, rng)
    """
    return Expectation(stochastic_fn, num_samples)


def in_precision(
    dtype: jnp.dtype, bind: Callable[[Any], LogitsFn | Expectation]
) -> Callable[[Any], LogitsFn | Expectation]:
    """``variables -> model`` that computes in another floating-point type, images and logits staying as they are.

    Meant for ``run_stages(..., search_fn=in_precision(jnp.bfloat16, bind), variables=...)``: the search is cheap, what
    it finds is verified by ``bind`` itself.
    """

    def cast(leaf: Array) -> Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    def bound(variables: Any) -> LogitsFn | Expectation:
        model: Any = bind(jax.tree.map(cast, variables))
        if isinstance(model, Expectation):
            draw = model.stochastic_fn
            return Expectation(lambda images, rng: draw(cast(images), rng).astype(images.dtype), model.num_samples)
        return lambda images: model(cast(images)).astype(images.dtype)

    return bound


def evaluate(logits_fn: LogitsFn | Expectation, images: Array, rngs: Key) -> Array:
    """Logits [n, classes]; the keys [n] are for a stochastic model."""
    if isinstance(logits_fn, Expectation):
        return _log_mean_probability(logits_fn.draws(images, rngs))
    return logits_fn(images)


def differentiate(
    logits_fn: LogitsFn | Expectation, images: Array, rngs: Key, cotangents: Callable[[Array], Array]
) -> tuple[Array, Array]:
    """Logits [n, classes] and gradients [n, k, h, w, c] of the k combinations of them that ``cotangents`` asks for.

    ``cotangents`` maps logits [n, classes] to [n, k, classes].
    """
    if isinstance(logits_fn, Expectation):
        draws, pullback = jax.vjp(lambda x: logits_fn.draws(x, rngs), images)
        wanted = jax.vmap(cotangents, in_axes=1, out_axes=2)(draws) / logits_fn.num_samples
        logits = _log_mean_probability(draws)
    else:
        logits, pullback = jax.vjp(logits_fn, images)
        draws, wanted = logits, cotangents(logits)
    wanted = wanted.astype(draws.dtype)
    if wanted.shape[1] == 1:
        return logits, pullback(wanted[:, 0])[0][:, None]
    return logits, jax.vmap(pullback, in_axes=1, out_axes=1)(wanted)[0]


def finite(gradients: Array) -> tuple[Array, Array]:
    """Gradients [n, k, h, w, c] that can be followed, and bool [n]: where some entry was NaN or infinite.

    NaN becomes 0, no direction; an infinity keeps its sign and becomes so large a number that the squares of an image
    full of it still have a finite sum.  Everything else stays as it is, to the last bit.
    """
    largest = float(jnp.finfo(gradients.dtype).max / max(math.prod(gradients.shape[2:]), 1)) ** 0.5
    nonfinite = jnp.any(~jnp.isfinite(gradients), axis=(1, 2, 3, 4))

    def mend(gradients: Array) -> Array:
        return jnp.nan_to_num(gradients, nan=0.0, posinf=largest, neginf=-largest)

    # A branch: fused with what follows, the mending would change the rounding of attacks that do not need it.
    return jax.lax.cond(jnp.any(nonfinite), mend, lambda gradients: gradients, gradients), nonfinite


def _log_mean_probability(draws: Array) -> Array:
    return jax.nn.logsumexp(jax.nn.log_softmax(draws), axis=1) - jnp.log(draws.shape[1])
