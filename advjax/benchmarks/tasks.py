"""What is measured: attacks on one batch, attacks through the runner, and training steps."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

NUM_CLASSES = 10
RUNNER = "-runner"
"""Suffix of an attack that advjax runs by ``run_stages``, as users do who want verdicts; others run as on one batch."""
BATCHES = {
    "pgd-20": "linf, 20 steps of epsilon / 8, random start",
    "autopgd-20": "linf, cross-entropy, 20 steps, one restart",
    "autopgd-100": "linf, cross-entropy, 100 steps, one restart",
    "cw-l2-100": "Adam 0.01, 100 steps, one constant c = 1, no early abort",
    "deepfool-l2-50": "at most 50 steps, overshoot 0.02, all classes",
}
BY_RUNNER = {
    f"autopgd-100{RUNNER}": "verdicts of autopgd-100: an image is left alone once it is misclassified",
    f"cw-l2-100{RUNNER}": "cw-l2-100 on every image to its end; the closest verified success counts",
    f"deepfool-l2-50{RUNNER}": "verdicts of deepfool-l2-50: an image is left alone once it is misclassified",
}
ENSEMBLES = {
    "autoattack": "standard, linf: APGD-CE 100, APGD-T 9x100, FAB-T 9x100, Square 5000; survivors only",
    "quick-check": "advjax.attacks.quick_check_stages; compare with autoattack",
}
TRAINING = {
    "train": "one step per batch: cross-entropy, SGD with momentum 0.9 and weight decay 5e-4, BatchNorm in train mode",
    "train-pgd-7": "the same on images attacked by PGD with 7 steps of epsilon / 4 on the current weights",
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
TASKS = BATCHES | BY_RUNNER | ENSEMBLES | TRAINING | ADVJAX_ONLY
PASSES = {
    **{"pgd-20": 2 * 20, "autopgd-20": 2 * 21, "autopgd-100": 2 * 101, "cw-l2-100": 2 * 100},
    # The forward pass, the gradients of the features and those of the weights.
    **{"train": 3, "train-pgd-7": 3 + 2 * 7},
}
"""Passes per image (a gradient counts as one more) of tasks that always take all their steps."""


class Output(NamedTuple):
    """What a call returned for all images."""

    adversarial: np.ndarray | None = None
    """float32 [n, h, w, c]; None for training."""
    passes: float | None = None
    """Passes summed over all images (a gradient counts as one more); None if the library does not report them."""
    loss: float | None = None
    """Loss of the first batch, before the step; None for attacks."""


Call: TypeAlias = Callable[[], Output]
"""Does a task on all images of a network, and blocks until it is done."""


def is_of_runner(task: str) -> bool:
    """Whether advjax does the task by ``run_stages``, which compiles by itself and verifies what it finds."""
    return task in BY_RUNNER or task in ENSEMBLES


def batch_slices(count: int, batch_size: int) -> list[slice]:
    """Consecutive slices of at most ``batch_size`` that cover ``count`` examples."""
    return [slice(begin, min(begin + batch_size, count)) for begin in range(0, count, batch_size)]
