"""One row for each attack: how the tests build it, and what it promises."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from advjax import attacks
from advjax.attacks import Attack, ThreatModel

NORMS = {"linf": attacks.linf, "l2": attacks.l2, "l1": attacks.l1}


class Row(NamedTuple):
    make: Callable[..., Attack]
    """``(threat_model, targeted) -> Attack``."""
    norms: tuple[str, ...]
    """The norms it works with; the expensive tests only take the first."""
    random: bool = False
    returns_success: bool = True
    """Whether a success that was seen is never thrown away again."""
    minimal: bool = False
    """Whether it looks for the smallest perturbation: an image that is misclassified already needs none."""
    targetable: bool = True
    pixels_close: float = 5e-5
    """Between differently compiled runs; a search may end at another of two almost equal points."""
    steps_close: int = 0
    """Between differently compiled runs, of an attack that makes as many trials as it takes."""
    enough: float = 1.02
    """Multiple of the closed-form distance within which it has to succeed."""
    variant_of: str = ""
    """Another row, with the same loop: what depends on the loop alone is only tested on both in the slow tests."""


def _fgsm(threat_model: ThreatModel, targeted: bool) -> Attack:
    return attacks.fgsm(threat_model, targeted=targeted)


def _one_step_target_class(threat_model: ThreatModel, targeted: bool) -> Attack:
    assert not targeted
    return attacks.one_step_target_class(threat_model, target=attacks.next_likely_class(1))


def _bim(threat_model: ThreatModel, targeted: bool) -> Attack:
    return attacks.bim(threat_model, num_steps=10, step_size=threat_model.epsilon / 5, targeted=targeted)


def _pgd(threat_model: ThreatModel, targeted: bool, **options) -> Attack:
    return attacks.pgd(threat_model, num_steps=10, step_size=threat_model.epsilon / 2, targeted=targeted, **options)


def _auto_pgd(threat_model: ThreatModel, targeted: bool, **options) -> Attack:
    return attacks.auto_pgd(threat_model, num_steps=10, targeted=targeted, **options)


def _auto_pgd_l1(threat_model: ThreatModel, targeted: bool) -> Attack:
    return attacks.auto_pgd_l1(threat_model, num_steps=20, targeted=targeted)


def _auto_pgd_l1_aimed(threat_model: ThreatModel, targeted: bool) -> Attack:
    assert not targeted
    return attacks.auto_pgd_l1(threat_model, num_steps=20, aim=attacks.next_likely_class(1))


def _deepfool(threat_model: ThreatModel, targeted: bool) -> Attack:
    assert not targeted
    return attacks.deepfool(threat_model, num_steps=10)


def _carlini_wagner_l2(threat_model: ThreatModel, targeted: bool) -> Attack:
    options = {"num_steps": 80, "binary_search_steps": 3, "learning_rate": 2e-3, "initial_const": 0.01}
    return attacks.carlini_wagner_l2(threat_model, targeted=targeted, abort_early=False, **options)


def _carlini_wagner_l2_last(threat_model: ThreatModel, targeted: bool) -> Attack:
    # With a confidence that the balls of these tests have no room for, the end of the search is no matter of luck.
    options = {"binary_search_steps": 1, "learning_rate": 2e-3, "initial_const": 20.0, "abort_early": False}
    return attacks.carlini_wagner_l2(
        threat_model, num_steps=80, confidence=0.05, targeted=targeted, returns="last", **options
    )


def _carlini_wagner_l2_line_search(threat_model: ThreatModel, targeted: bool) -> Attack:
    options = {"num_steps": 3, "binary_search_steps": 3, "initial_const": 0.3}
    return attacks.carlini_wagner_l2_line_search(threat_model, targeted=targeted, **options)


def _carlini_wagner_linf_line_search(threat_model: ThreatModel, targeted: bool) -> Attack:
    return attacks.carlini_wagner_linf_line_search(threat_model, num_steps=25, targeted=targeted)


def _carlini_wagner_linf(threat_model: ThreatModel, targeted: bool) -> Attack:
    return attacks.carlini_wagner_linf(threat_model, num_steps=10, learning_rate=0.02, targeted=targeted)


def _fab(threat_model: ThreatModel, targeted: bool) -> Attack:
    return attacks.fab(threat_model, num_steps=10, targeted=targeted)


def _square(threat_model: ThreatModel, targeted: bool) -> Attack:
    return attacks.square(threat_model, num_queries=400, targeted=targeted)


ATTACKS = {
    "fgsm": Row(_fgsm, ("l2", "linf", "l1"), returns_success=False, variant_of="pgd"),
    "one_step_target_class": Row(
        _one_step_target_class, ("linf", "l2"), returns_success=False, targetable=False, variant_of="pgd"
    ),
    "bim": Row(_bim, ("linf",), returns_success=False, variant_of="pgd"),
    "pgd": Row(_pgd, ("linf", "l1", "l2"), random=True),
    "pgd_highest_loss": Row(
        functools.partial(_pgd, loss=attacks.margin, returns="highest_loss"), ("l2",), random=True, variant_of="pgd"
    ),
    "auto_pgd": Row(_auto_pgd, ("linf", "l2"), random=True),
    "auto_pgd_l1_aimed": Row(
        _auto_pgd_l1_aimed, ("l1",), random=True, targetable=False, enough=1.25, variant_of="auto_pgd_l1"
    ),
    "auto_pgd_l1": Row(_auto_pgd_l1, ("l1",), random=True, enough=1.25),
    "auto_pgd_dlr_best": Row(
        functools.partial(_auto_pgd, loss="dlr", returns="best"), ("l2",), random=True, variant_of="auto_pgd"
    ),
    "carlini_wagner_l2": Row(_carlini_wagner_l2, ("l2",), minimal=True, pixels_close=1e-3),
    "carlini_wagner_l2_last": Row(
        _carlini_wagner_l2_last,
        ("l2",),
        returns_success=False,
        minimal=True,
        enough=1.4,
        variant_of="carlini_wagner_l2",
    ),
    "carlini_wagner_l2_line_search": Row(_carlini_wagner_l2_line_search, ("l2",), minimal=True, pixels_close=1e-3),
    "carlini_wagner_linf_line_search": Row(
        _carlini_wagner_linf_line_search, ("linf",), minimal=True, steps_close=8, enough=1.25
    ),
    "carlini_wagner_linf": Row(_carlini_wagner_linf, ("linf",), minimal=True),
    "deepfool": Row(_deepfool, ("l2", "linf"), minimal=True, targetable=False),
    "fab": Row(_fab, ("linf", "l2", "l1"), minimal=True),
    "square": Row(_square, ("linf", "l2"), random=True, enough=2.5),
}
FIRST = [(name, row.norms[0]) for name, row in ATTACKS.items()]
"""Every attack with the first of its norms."""

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Compiler options that halve the compile time."""
