"""Querying a model, deterministic or stochastic, for logits and gradients."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks.eot import Expectation, log_mean_probability
from advjax.attacks.input_checks import as_logits, explaining_train_mode
from advjax.cpu.fast_on_cpu import fast_on_cpu
from advjax.types import Array, Key, LogitsFn, PyTree


def traced_once(logits_fn: LogitsFn | Expectation) -> LogitsFn | Expectation:
    """The same model, whose Python code runs once for all queries with equal shapes, dtypes and settings of JAX.

    An attack queries its model in several places of one program, and tracing a large network takes longer than tracing
    the attack.  The program stays the same, equation by equation.  What the model closes over must not change as long
    as the result is in use: make a new one for each call of an attack.
    """
    if isinstance(logits_fn, Expectation):
        return Expectation(_traced_once(logits_fn.stochastic_fn), logits_fn.num_samples)
    return _traced_once(logits_fn)


def _traced_once(function: Callable[..., Any]) -> Callable[..., Any]:
    # JAX remembers traces by function: a new one forgets them when it is dropped, and may wrap what has no hash.
    return jax.jit(lambda *query: function(*query), inline=True)


def traced_once_bound(
    bind: Callable[[PyTree], LogitsFn | Expectation], variables: PyTree
) -> Callable[[PyTree], LogitsFn | Expectation]:
    """``bind``, whose models share what has been traced, over several programs: ``traced_once`` for host code.

    Args:
      bind: ``variables -> model``, a pure function.
      variables: of one model.
    """
    kinds: list[LogitsFn | Expectation] = []
    jax.eval_shape(lambda variables: kinds.append(bind(variables)), variables)
    num_samples = kinds[0].num_samples if isinstance(kinds[0], Expectation) else None

    def query(variables: PyTree, *query: Array) -> Array:
        model = bind(variables)
        return (model.stochastic_fn if isinstance(model, Expectation) else model)(*query)

    inlined = jax.jit(query, inline=True)

    def bound(variables: PyTree) -> LogitsFn | Expectation:
        function = functools.partial(inlined, variables)
        return function if num_samples is None else Expectation(function, num_samples)

    return bound


def evaluate(logits_fn: LogitsFn | Expectation, images: Array, rngs: Key) -> Array:
    """Logits [n, classes].  Only a stochastic model uses the keys [n]."""
    with explaining_train_mode():
        if isinstance(logits_fn, Expectation):
            return log_mean_probability(fast_on_cpu(logits_fn.draws)(images, rngs))
        return as_logits(fast_on_cpu(logits_fn)(images))


def differentiate(
    logits_fn: LogitsFn | Expectation, images: Array, rngs: Key, cotangents: Callable[[Array], Array]
) -> tuple[Array, Array]:
    """Logits [n, classes], and the gradients of one or several functions of each image's logits.

    ``cotangents`` maps logits [n, classes] to the derivatives of these functions with respect to the logits: [n,
    classes] for one function, with gradients [n, h, w, c], or [n, k, classes] for k, with gradients [n, k, h, w, c].
    """
    if isinstance(logits_fn, Expectation):
        draws, pullback = jax.vjp(lambda x: fast_on_cpu(logits_fn.draws)(x, rngs), images)
        derivatives = jax.vmap(cotangents, in_axes=1, out_axes=-2)(draws) / logits_fn.num_samples
        logits = log_mean_probability(draws)
    else:
        fast = fast_on_cpu(logits_fn)
        logits, pullback = jax.vjp(lambda x: as_logits(fast(x)), images)
        draws, derivatives = logits, cotangents(logits)
    derivatives = derivatives.astype(draws.dtype)
    if derivatives.ndim == draws.ndim:
        return logits, pullback(derivatives)[0]
    if derivatives.shape[1] == 1:
        return logits, pullback(derivatives[:, 0])[0][:, None]
    return logits, jax.vmap(pullback, in_axes=1, out_axes=1)(derivatives)[0]


def probe_gradients(logits_fn: LogitsFn | Expectation, images: Array, rngs: Key) -> Array:
    """Gradients [n, h, w, c] of a fixed combination of the finite logits, which tell equal logits apart.

    Unlike those of a loss, they do not vanish where the softmax saturates.
    """

    def cotangents(logits: Array) -> Array:
        weights = jnp.cos(1 + jnp.arange(logits.shape[-1], dtype=jnp.float32))
        return jnp.where(jnp.isfinite(logits), weights, 0)

    return differentiate(logits_fn, images, rngs, cotangents)[1]


def finite(gradients: Array) -> tuple[Array, Array]:
    """Replaces NaN and infinite entries of gradients [n, ..., h, w, c].

    NaN becomes 0, no direction; an infinity keeps its sign and becomes a number so small that the sum of squares over
    an image full of it is still finite.  All other entries are returned bit for bit.

    Returns:
      The gradients, and bool [n]: which images had an entry that was NaN or infinite.
    """
    largest = float(jnp.finfo(gradients.dtype).max / max(math.prod(gradients.shape[-3:]), 1)) ** 0.5
    nonfinite = jnp.any(~jnp.isfinite(gradients), axis=tuple(range(1, gradients.ndim)))

    # Selects and no branch, which a GPU would wait for the host to take at every step.
    return jnp.nan_to_num(gradients, nan=0.0, posinf=largest, neginf=-largest), nonfinite


def is_fooled(logits: Array | np.ndarray, label: Array | np.ndarray, targeted: bool = False) -> Array:
    """bool [...]: whether logits [..., classes] do not predict the label or, if targeted, predict the label.

    Logits with a NaN predict nothing.
    """
    return (predicted_class(logits) == label) == targeted


def predicted_class(logits: Array | np.ndarray) -> Array:
    """The class with the largest of the logits [..., classes]; -1, no class, where any of them is NaN.

    The argmax of NaN is the class of the first, which may be the right one.
    """
    # Methods, so that the host needs no compiled program for numpy arrays.
    is_nan = (logits != logits).any(axis=-1)
    return logits.argmax(axis=-1) * ~is_nan - is_nan


def in_precision(
    dtype: jnp.dtype, bind: Callable[[Any], LogitsFn | Expectation]
) -> Callable[[Any], LogitsFn | Expectation]:
    """Returns ``variables -> model`` computing in another floating-point type; images and logits keep theirs.

    Meant for ``run_stages(..., search_fn=in_precision(jnp.bfloat16, bind), variables=...)``: the search is cheap, and
    whatever it finds is verified by ``bind`` itself.
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
