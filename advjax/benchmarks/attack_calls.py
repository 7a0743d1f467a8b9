"""The attacks that are compared, and what running one of them means."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

NUM_CLASSES = 10
ATTACKS = {
    "pgd-20": "linf, 20 steps of epsilon / 8, random start",
    "autopgd-100": "linf, cross-entropy, 100 steps, one restart",
    "cw-l2-100": "Adam 0.01, 100 steps, one constant c = 1, no early abort",
    "deepfool-l2-50": "at most 50 steps, overshoot 0.02, all classes",
    "autoattack": "standard, linf: APGD-CE 100, APGD-T 9x100, FAB-T 9x100, Square 5000; survivors only",
    "quick-check": "advjax.attacks.quick_check_stages; compare with autoattack",
}
ADVJAX_ONLY = {
    "fgsm": "linf, one step",
    "one-step-least-likely": "linf, one step toward the least likely class",
    "bim-10": "linf, 10 steps of epsilon / 10",
    "autopgd-l1-100": "l1 12, cross-entropy, 100 steps",
    "cw-linf": "at most 1,000 steps per box, constants 1e-5 to 20",
    "cw-l2-line-search": "10 constants, 10 steps with line search for each",
    "cw-linf-line-search": "linf, 25 steps with line search",
    "fab-t-100": "linf, 100 steps toward the runner-up class",
    "square-1000": "linf, 1,000 queries",
}
"""Attacks timed for advjax only, on request."""
ATTACKS |= ADVJAX_ONLY
ENSEMBLES = {"autoattack", "quick-check"}
PASSES = {"pgd-20": 2 * 20, "autopgd-100": 2 * 101, "cw-l2-100": 2 * 100}
"""Passes per image (a gradient counts as two) of attacks that always take all their steps."""


class AttackOutput(NamedTuple):
    """What an attack returned for all images."""

    adversarial: np.ndarray
    """float32 [n, h, w, c]."""
    passes: float | None
    """Passes summed over all images (a gradient counts as two); None if the library does not report them."""


AttackCall: TypeAlias = Callable[[], AttackOutput]
"""Runs an attack on all images of a network, and blocks until it is done."""


def batch_slices(count: int, batch_size: int) -> list[slice]:
    """Consecutive slices of at most ``batch_size`` that cover ``count`` examples."""
    return [slice(begin, min(begin + batch_size, count)) for begin in range(0, count, batch_size)]
