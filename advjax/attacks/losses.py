"""What attacks maximise: functions of ONE example, ``(logits [classes], label) -> scalar``, larger = more adversarial.

An attack that only wants to leave the label may still aim at a class.  Its losses also take the class aimed at,
``(logits, label, target) -> scalar``, and an ``Aim`` chooses that class.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from advjax.attacks.base import Problem
from advjax.types import Array

Loss: TypeAlias = Callable[[Array, Array], Array]
AimedLoss: TypeAlias = Callable[[Array, Array, Array], Array]
Aim: TypeAlias = Callable[[Problem], Array]
"""``problem -> class``: the class by which to leave the label, the same at every step of an attack."""


def cross_entropy(logits: Array, label: Array) -> Array:
    """``-log softmax(logits)[label]``."""
    # Not logsumexp - logit: for confident predictions that difference cancels, and the sign of its gradient with it.
    return -jax.nn.log_softmax(logits)[label]


def margin(logits: Array, label: Array) -> Array:
    """``max_{i != label} z_i - z_label``: positive exactly where another class wins (Carlini & Wagner 2017, f_6)."""
    return _best_other(logits, label) - logits[label]


def dlr(logits: Array, label: Array) -> Array:
    """Difference of logits ratio, ``-(z_y - max_{i != y} z_i) / (z_(1) - z_(3))`` (Croce & Hein 2020, eq. 6).

    Invariant to shifting and scaling the logits.  With two classes there is no third logit, and the ratio of the only
    difference there is to itself would be constant: the plain ``margin`` is returned instead.
    """
    difference = margin(logits, label)
    if logits.shape[-1] < 3:
        return difference
    top = jax.lax.top_k(logits, 3)[0]
    return difference / (top[0] - top[2] + 1e-12)


def targeted_cross_entropy(logits: Array, label: Array, target: Array) -> Array:
    """``log softmax(logits)[target]``."""
    return -cross_entropy(logits, target)


def targeted_dlr(logits: Array, label: Array, target: Array) -> Array:
    """Targeted DLR, ``-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)`` (Croce & Hein 2020, eq. 7).

    With three classes ``z_(3)`` stands for the mean of the third and fourth logit; with two, where every ratio of
    differences is constant, the plain difference ``z_t - z_y`` is returned.
    """
    difference = logits[target] - logits[label]
    if logits.shape[-1] < 3:
        return difference
    top = jax.lax.top_k(logits, min(4, logits.shape[-1]))[0]
    return difference / (top[0] - jnp.mean(top[2:]) + 1e-12)


def next_likely_class(rank: int | Array) -> Aim:
    """The most likely class besides the label for rank 1, the one after that for rank 2, and so on.

    Where the label is predicted, rank r is the class that AutoAttack counts as number r + 1.  ``rank`` may be traced.
    """

    def aim(problem: Problem) -> Array:
        return jnp.argsort(_others(problem.clean_logits, problem.label), descending=True)[jnp.asarray(rank) - 1]

    return aim


def least_likely_class(problem: Problem) -> Array:
    """The least likely class besides the label on the clean image (Kurakin et al. 2017)."""
    return jnp.argmax(_others(-problem.clean_logits, problem.label))


def random_class(problem: Problem) -> Array:
    """A class drawn uniformly from all but the label, with the key of the image."""
    num_classes = problem.clean_logits.shape[-1]
    # Folded, to be independent of a random start made from the same key.
    steps = jax.random.randint(jax.random.fold_in(problem.rng, 0x61696D), (), 1, num_classes)
    return (problem.label + steps) % num_classes


def next_class(problem: Problem) -> Array:
    """The class whose number follows that of the label, 0 after the last."""
    return (problem.label + 1) % problem.clean_logits.shape[-1]


AIMS: dict[str, Aim] = {"least_likely": least_likely_class, "random": random_class, "next": next_class}
"""Aims that a config can name."""


def _best_other(logits: Array, label: Array) -> Array:
    return jnp.max(_others(logits, label))


def _others(logits: Array, label: Array) -> Array:
    """The logits, -inf at the label."""
    return jnp.where(jnp.arange(logits.shape[-1]) == label, -jnp.inf, logits)
