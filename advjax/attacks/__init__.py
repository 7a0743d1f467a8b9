"""Adversarial attacks on any JAX function ``images -> logits``.

Images are float arrays [n, h, w, c] in [0, 1].  ``attack(logits_fn, images, labels, rng)`` returns an ``AttackResult``.
"""

from advjax.attacks.auto_pgd import auto_pgd
from advjax.attacks.base import KEEP_RULES, Attack, Problem, trajectory
from advjax.attacks.combine import with_predicted_labels
from advjax.attacks.losses import cross_entropy, dlr, margin
from advjax.attacks.pgd import bim, fgsm, pgd
from advjax.attacks.threat_model import L1, L2, LINF, Norm, ThreatModel, l1, l2, linf
from advjax.types import AttackFn, AttackResult, LogitsFn

__all__ = [
    "KEEP_RULES",
    "L1",
    "L2",
    "LINF",
    "Attack",
    "AttackFn",
    "AttackResult",
    "LogitsFn",
    "Norm",
    "Problem",
    "ThreatModel",
    "auto_pgd",
    "bim",
    "cross_entropy",
    "dlr",
    "fgsm",
    "l1",
    "l2",
    "linf",
    "margin",
    "pgd",
    "trajectory",
    "with_predicted_labels",
]
