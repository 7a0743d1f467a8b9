"""Losses that attacks maximize: functions of ONE example, ``(logits [classes], label) -> scalar``.

An untargeted attack may still aim at a class.  Its losses also take that class, ``(logits, label, target) -> scalar``,
and an ``Aim`` chooses it.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from advjax.attacks.base import Problem
from advjax.attacks.input_checks import is_concrete, require_count
from advjax.types import Array

Loss: TypeAlias = Callable[[Array, Array], Array]
AimedLoss: TypeAlias = Callable[[Array, Array, Array], Array]
Aim: TypeAlias = Callable[[Problem], Array]
"""``problem -> class``: the class towards which to leave the label, the same at every step of an attack."""


def entry(logits: Array, index: Array) -> Array:
    """``logits[index]``, whose gradient compiles to a select.

    That of indexing is a scatter, which becomes a serial loop over the batch on a TPU.
    """
    return jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == index, logits, 0))


def other_classes(logits: Array, label: Array) -> Array:
    """All classes but the label [classes - 1], from the largest to the smallest logit."""
    # The label goes behind all others, also behind classes that are masked by logits of -inf.
    ranked = jnp.where(jnp.arange(logits.shape[-1]) == label, -jnp.inf, jnp.maximum(logits, _lowest(logits)))
    return jnp.argsort(ranked, descending=True)[:-1]


def cross_entropy(logits: Array, label: Array) -> Array:
    """``-log softmax(logits)[label]``."""
    # Not logsumexp - logit: for confident predictions the difference cancels, and so does the sign of its gradient.
    return -entry(jax.nn.log_softmax(logits), label)


def margin(logits: Array, label: Array) -> Array:
    """``max_{i != label} z_i - z_label``: positive exactly where another class wins (Carlini & Wagner 2017, f_6)."""
    return jnp.max(_others(logits, label)) - entry(logits, label)


def dlr(logits: Array, label: Array) -> Array:
    """Difference of logits ratio, ``-(z_y - max_{i != y} z_i) / (z_(1) - z_(3))`` (Croce & Hein 2020, eq. 6).

    Invariant to shifts and scaling of the logits.  With two classes (or two that are not masked by -inf) there is no
    third logit, and the only difference divided by itself would be constant, so the ``margin`` is returned instead.
    """
    difference = margin(logits, label)
    if logits.shape[-1] < 3:
        return difference
    top = _largest(logits, 3)
    return _ratio(difference, top[0] - top[2])


def targeted_cross_entropy(logits: Array, label: Array, target: Array) -> Array:
    """``log softmax(logits)[target]``."""
    return -cross_entropy(logits, target)


def targeted_dlr(logits: Array, label: Array, target: Array) -> Array:
    """Targeted DLR, ``-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)`` (Croce & Hein 2020, eq. 7).

    With three classes, ``z_(3)`` replaces the mean of the third and fourth logit; with two, every ratio of differences
    is constant, so the difference ``z_t - z_y`` is returned.
    """
    difference = entry(logits, target) - entry(logits, label)
    if logits.shape[-1] < 3:
        return difference
    top = _largest(logits, min(4, logits.shape[-1]))
    # A fourth logit of -inf is as good as none.
    mean = jnp.mean(top[2:])
    return _ratio(difference, top[0] - jnp.where(jnp.isneginf(top[-1]), top[2], mean))


def next_likely_class(rank: int | Array) -> Aim:
    """Aims at the most likely class besides the label for rank 1, at the next one for rank 2, and so on.

    Where the label is predicted, rank r is the class that AutoAttack numbers r + 1.  ``rank`` may be traced.
    """
    if is_concrete(rank):
        require_count("rank", rank)

    def aim(problem: Problem) -> Array:
        others = other_classes(problem.clean_logits, problem.label)
        if is_concrete(rank) and int(rank) > len(others):
            raise ValueError(f"rank must be at most {len(others)} for {len(others) + 1} classes, got {rank}")
        return others[jnp.asarray(rank) - 1]

    return aim


def least_likely_class(problem: Problem) -> Array:
    """The least likely class besides the label on the clean image (Kurakin et al. 2017), except for masked classes."""
    logits = problem.clean_logits
    return jnp.argmax(_others(jnp.where(jnp.isneginf(logits), _lowest(logits), -logits), problem.label))


def random_class(problem: Problem) -> Array:
    """A class drawn uniformly from all but the label, with the image's key."""
    num_classes = problem.clean_logits.shape[-1]
    # Folded, to be independent of a random start drawn from the same key.
    steps = jax.random.randint(jax.random.fold_in(problem.rng, 0x61696D), (), 1, num_classes)
    return (problem.label + steps) % num_classes


def next_class(problem: Problem) -> Array:
    """The class with the next number after the label, 0 after the last."""
    return (problem.label + 1) % problem.clean_logits.shape[-1]


AIMS: dict[str, Aim] = {"least_likely": least_likely_class, "random": random_class, "next": next_class}
"""Aims by name."""


def _ratio(difference: Array, scale: Array) -> Array:
    """``difference / scale``, or ``difference`` where fewer than three logits are finite and the scale is infinite."""
    tiny = max(1e-12, float(jnp.finfo(scale.dtype).tiny))
    return difference / (jnp.where(jnp.isposinf(scale), 1, scale) + tiny)


def _largest(logits: Array, count: int) -> Array:
    """The largest logits [count] in order.  As in ``entry``, the gradient is a select, while that of top_k scatters."""
    ranked = jax.lax.top_k(jax.lax.stop_gradient(logits), count)[1]
    return jax.vmap(entry, in_axes=(None, 0))(logits, ranked)


def _lowest(logits: Array) -> float:
    return float(jnp.finfo(logits.dtype).min)


def _others(logits: Array, label: Array) -> Array:
    """The logits with -inf at the label."""
    return jnp.where(jnp.arange(logits.shape[-1]) == label, -jnp.inf, logits)
