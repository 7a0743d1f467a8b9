"""Training losses of ONE example: ``(logits [classes], target [classes]) -> scalar``, to be minimized.

The target is a distribution over the classes: one-hot, smoothed, or mixed. Map over a batch with ``jax.vmap`` and
average there. Every loss and its gradient are finite for finite logits whose differences do not overflow, and for
logits of -inf (masked classes) where the target has no mass.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from advjax.types import Array, UserError

Loss: TypeAlias = Callable[[Array, Array], Array]
"""``(logits [classes], target [classes]) -> scalar``."""

# PyTorch's BCELoss clamps logarithms here; published numbers depend on it.
_SMALLEST_LOG = -100.0


def cross_entropy(logits: Array, target: Array) -> Array:
    """``-sum_j t_j log p_j`` with p = softmax(logits).

    Raises:
      UserError: ``logits`` and ``target`` differ in shape (convert a class index with ``jax.nn.one_hot``).
    """
    _check_shapes("cross_entropy", logits, target)
    return -_mean_under(target, jax.nn.log_softmax(logits))


def focal(gamma: float = 2.0) -> Loss:
    """The focal loss ``-sum_j t_j (1 - p_j)^gamma log p_j`` with p = softmax(logits).

    For a one-hot target this is ``-(1 - p_y)^gamma log p_y`` (Lin et al., 2017, eq. 4, on softmax probabilities and
    without class weights), which down-weights examples that are already classified correctly. Soft targets weight each
    class by its own (1 - p_j)^gamma. gamma = 0 is ``cross_entropy``.

    Raises:
      UserError: ``gamma`` is negative, or (when called) ``logits`` and ``target`` differ in shape.
    """
    if not gamma >= 0:
        raise UserError(f"focal: gamma is {gamma!r}; give a number, 0 or more")

    def loss(logits: Array, target: Array) -> Array:
        _check_shapes("focal", logits, target)
        weight = jnp.exp(gamma * _log_complement(logits))
        return -_mean_under(target * weight, jax.nn.log_softmax(logits))

    return loss


def bce_on_softmax(logits: Array, target: Array) -> Array:
    """``-(1/C) sum_j [t_j log p_j + (1 - t_j) log(1 - p_j)]`` with p = softmax(logits), each logarithm at least -100.

    Binary cross-entropy of every class on softmax outputs, as in the published code of manifold mixup (Verma et al.,
    2019). Averaged over the C classes, its gradient is several times smaller than that of ``cross_entropy``, so
    learning rates do not carry over. log(1 - p_j) is computed without forming 1 - p_j and is accurate down to the
    clamp; a clamped term has gradient 0.

    Raises:
      UserError: ``logits`` and ``target`` differ in shape.
    """
    _check_shapes("bce_on_softmax", logits, target)
    log_p = jnp.maximum(jax.nn.log_softmax(logits), _SMALLEST_LOG)
    log_not_p = jnp.maximum(_log_complement(logits), _SMALLEST_LOG)
    return -jnp.mean(target * log_p + (1 - target) * log_not_p)


def boosted_cross_entropy(logits: Array, target: Array) -> Array:
    """``-sum_j t_j [log p_j + log(1 - max_{k != j} p_k)]`` with p = softmax(logits).

    Cross-entropy plus a margin term on the most likely other class; the BCE of MART (Wang et al., 2020).

    Raises:
      UserError: ``logits`` and ``target`` differ in shape.
    """
    _check_shapes("boosted_cross_entropy", logits, target)
    first, second = jax.lax.top_k(logits, 2)[1]
    rival = jnp.where(jnp.arange(logits.shape[0]) == first, second, first)
    return -_mean_under(target, jax.nn.log_softmax(logits) + _log_complement(logits)[rival])


def kl_divergence(logits: Array, other: Array) -> Array:
    """``KL(p || q) = sum_j p_j (log p_j - log q_j)`` with p = softmax(logits), q = softmax(other).

    A class with p_j = 0, such as one with a logit of -inf, contributes 0 to the value and to the gradient. The
    divergence is infinite if p_j > 0 where q_j = 0.

    Raises:
      UserError: the arguments differ in shape.
    """
    _check_shapes("kl_divergence", logits, other)
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(other)
    return _mean_under(jnp.exp(log_p), log_p, log_q)


def _mean_under(weights: Array, values: Array, subtracted: Array | float = 0.0) -> Array:
    """``sum_j w_j (v_j - s_j)``, where infinite values of weight 0 count as 0, in value and in gradient."""
    counts = weights > 0
    # Masked before the difference, because the derivative of the branch that is not taken would multiply 0 by infinity.
    difference = jnp.where(counts, values, 0.0) - jnp.where(counts, subtracted, 0.0)
    return jnp.sum(weights * difference)


def _log_complement(logits: Array) -> Array:
    """``log(1 - softmax(logits))`` [classes] without cancellation, in value and in gradient.

    Only the most likely class can have p > 1/2; there 1 - p is the sum of the other probabilities.
    """
    likeliest = jnp.arange(logits.shape[0]) == jnp.argmax(logits)
    others = jax.nn.logsumexp(jnp.where(likeliest, -jnp.inf, logits)) - jax.nn.logsumexp(logits)
    # Both branches of a where are differentiated: log1p must not see -1 at the most likely class.
    small = jnp.where(likeliest, 0.0, jax.nn.softmax(logits))
    return jnp.where(likeliest, others, jnp.log1p(-small))


def _check_shapes(name: str, logits: Array, target: Array) -> None:
    if logits.shape != target.shape or logits.ndim != 1:
        raise UserError(
            f"{name}: logits {logits.shape} and target {target.shape} of one example must both be [classes]; "
            "map over a batch with jax.vmap, and convert class indices with jax.nn.one_hot"
        )
