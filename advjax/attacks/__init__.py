"""Adversarial attacks on any JAX function ``images -> logits``.

Images are float arrays [n, h, w, c] in [0, 1].  ``attack(logits_fn, images, labels, rng)`` returns an ``AttackResult``.
"""

from advjax.attacks.auto_attack import auto_attack, auto_attack_stages, quick_check_stages
from advjax.attacks.auto_pgd import auto_pgd
from advjax.attacks.auto_pgd_l1 import auto_pgd_l1, auto_pgd_l1_large_epsilon
from advjax.attacks.base import Attack, Problem, trajectory
from advjax.attacks.candidate import KEEP_RULES
from advjax.attacks.carlini_wagner.l2 import carlini_wagner_l2
from advjax.attacks.carlini_wagner.l2_line_search import carlini_wagner_l2_line_search
from advjax.attacks.carlini_wagner.linf import carlini_wagner_linf
from advjax.attacks.carlini_wagner.linf_line_search import carlini_wagner_linf_line_search
from advjax.attacks.combine import Stage, over_targets, with_predicted_labels, with_restarts, worst_of
from advjax.attacks.compilation_cache import use_compilation_cache
from advjax.attacks.deepfool import deepfool
from advjax.attacks.eot import Expectation, expectation
from advjax.attacks.fab import fab
from advjax.attacks.losses import (
    AIMS,
    Aim,
    cross_entropy,
    dlr,
    least_likely_class,
    margin,
    next_class,
    next_likely_class,
    random_class,
    targeted_cross_entropy,
    targeted_dlr,
)
from advjax.attacks.model_queries import in_precision
from advjax.attacks.norms import L1, L2, LINF, Norm
from advjax.attacks.pgd import bim, fgsm, one_step_target_class, pgd
from advjax.attacks.random_noise import gaussian_noise, random_points
from advjax.attacks.runner import Progress, Verdicts, run_stages
from advjax.attacks.square import square
from advjax.attacks.threat_model import ThreatModel, l1, l2, linf
from advjax.types import AttackFn, AttackResult, LogitsFn

__all__ = [
    "AIMS",
    "KEEP_RULES",
    "L1",
    "L2",
    "LINF",
    "Aim",
    "Attack",
    "AttackFn",
    "AttackResult",
    "Expectation",
    "LogitsFn",
    "Norm",
    "Problem",
    "Progress",
    "Stage",
    "ThreatModel",
    "Verdicts",
    "auto_attack",
    "auto_attack_stages",
    "auto_pgd",
    "auto_pgd_l1",
    "auto_pgd_l1_large_epsilon",
    "bim",
    "carlini_wagner_l2",
    "carlini_wagner_l2_line_search",
    "carlini_wagner_linf",
    "carlini_wagner_linf_line_search",
    "cross_entropy",
    "deepfool",
    "dlr",
    "expectation",
    "fab",
    "fgsm",
    "gaussian_noise",
    "in_precision",
    "l1",
    "l2",
    "least_likely_class",
    "linf",
    "margin",
    "next_class",
    "next_likely_class",
    "one_step_target_class",
    "over_targets",
    "pgd",
    "quick_check_stages",
    "random_class",
    "random_points",
    "run_stages",
    "square",
    "targeted_cross_entropy",
    "targeted_dlr",
    "trajectory",
    "use_compilation_cache",
    "with_predicted_labels",
    "with_restarts",
    "worst_of",
]
