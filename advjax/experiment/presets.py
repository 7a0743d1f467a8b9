"""Evaluation presets (``quick``, ``standard``, ``rand``) that replace a config's attacks."""

import copy
from collections.abc import Mapping
from typing import Any

from advjax.experiment.build_attack import build_attack
from advjax.types import UserError

PAPER = "paper"
PRESETS: Mapping[str, Mapping[str, Any] | None] = {
    "quick": {"name": "quick_check"},
    "standard": {"name": "auto_attack", "version": "standard"},
    "rand": {"name": "auto_attack", "version": "rand"},
    PAPER: None,
}
"""``paper``: the attacks of the config.  ``rand``: AutoAttack's version for stochastic models."""
_NO_PROTOCOL = {"faithful_attacks": [], "transfer_labels": "true", "protocol": "sound"}
"""The attack of a preset belongs to no paper's protocol: its transfer results use true labels and are "sound"."""


def with_preset(config: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """The config with the one attack of a preset: the short ensemble, or AutoAttack.

    Norm and epsilon are those of the attack that the report pictures, if it is bounded in linf or l2, else those of the
    first such attack of the config.  The curve over epsilon is left out, and so is what the config says of its own
    attacks alone: labels and protocol of transfer results.

    Args:
      config: a complete config.
      preset: one of ``PRESETS``; "paper" changes nothing.

    Raises:
      UserError: an unknown preset, or no attack to take an epsilon from.
    """
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}; known are {', '.join(PRESETS)}")
    changed, chosen = copy.deepcopy(dict(config)), PRESETS[preset]
    if chosen is not None:
        main = _main_attack(config["evaluation"], preset)
        attack = {**chosen, "norm": main.get("norm", "linf"), "epsilon": main["epsilon"]}
        name = attack["name"]
        replaced = {"attacks": {"order": [name], name: attack}, "pictured": name, "curve": None}
        changed["evaluation"] = {**changed["evaluation"], **replaced, **_NO_PROTOCOL}
    return changed


def _main_attack(evaluation: Mapping[str, Any], preset: str) -> Mapping[str, Any]:
    attacks, pictured = evaluation["attacks"], evaluation["pictured"]
    names = sorted(attacks["order"], key=lambda name: name != pictured)
    for name in names:
        if build_attack(name, attacks.get(name, {}), f"evaluation.attacks.{name}").is_examinable:
            return attacks[name]
    raise UserError(f"preset {preset} needs an epsilon: the config has no attack with one in linf or l2")
