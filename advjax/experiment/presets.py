"""Attacks by the name of an effort, in place of those of a config, for any trained experiment."""

from collections.abc import Mapping
from typing import Any

from advjax.experiment.build_attack import build_attack
from advjax.experiment.spec import EvaluationPlan, Experiment, NamedAttack
from advjax.types import UserError

PAPER = "paper"
PRESETS: Mapping[str, Mapping[str, Any] | None] = {
    "quick": {"name": "quick_check"},
    "standard": {"name": "auto_attack", "version": "standard"},
    PAPER: None,
}
"""``paper``: what the config says."""


def with_preset(experiment: Experiment, preset: str) -> Experiment:
    """The experiment, evaluated by the one attack of a preset: the short ensemble, or AutoAttack.

    Norm and epsilon are those of the attack that the report pictures, if it is in linf or l2 and has an epsilon, else
    those of the first attack of the config that is and has.  The curve over epsilon is left out.

    Args:
      experiment: any.
      preset: one of ``PRESETS``; "paper" changes nothing.

    Raises:
      UserError: an unknown preset, or no attack to take an epsilon from.
    """
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}; known are {', '.join(PRESETS)}")
    chosen, plan = PRESETS[preset], experiment.evaluation
    if chosen is None:
        return experiment
    main = _main_attack(plan, preset)
    spec = {**chosen, "norm": main.norm, "epsilon": main.spec["epsilon"]}
    name = spec["name"]
    attack = build_attack(name, spec, f"preset {preset}")
    described = {"attacks": {"order": [name], name: spec}, "pictured": name, "curve": None}
    config = {**experiment.config, "evaluation": {**experiment.config["evaluation"], **described}}
    return experiment._replace(
        evaluation=plan._replace(attacks=(attack,), pictured=name, curve=None),
        config=config,
    )


def _main_attack(plan: EvaluationPlan, preset: str) -> NamedAttack:
    candidates = [attack for attack in plan.attacks if attack.is_examinable]
    if not candidates:
        raise UserError(f"preset {preset} needs an epsilon: the config has no attack with one in linf or l2")
    return next((attack for attack in candidates if attack.name == plan.pictured), candidates[0])
