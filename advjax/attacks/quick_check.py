"""A short ensemble for the everyday question whether a change helped.  It is not AutoAttack, nor to be called so."""

import dataclasses

from advjax.attacks.auto_pgd import auto_pgd
from advjax.attacks.base import Attack
from advjax.attacks.combine import Stage, restarts, targets
from advjax.attacks.losses import Aim
from advjax.attacks.square import square
from advjax.attacks.threat_model import ThreatModel

CE_STEPS, TARGETS, TARGETED_STEPS, QUERIES = 50, 4, 100, 300


def quick_check_stages(threat_model: ThreatModel) -> tuple[Stage, ...]:
    """Three stages for ``run_stages``, an eighth of the work of ``auto_attack_stages`` on an image that stays robust.

    APGD-CE with 50 steps for the images that break easily, APGD-T with 100 steps towards each of the 4 most likely
    other classes for the rest, and 300 queries of Square, which look for a hole that the gradients do not show.  FAB-T
    is left out, and with it its search for the smallest perturbation.

    The accuracy it leaves is an upper bound of the accuracy under AutoAttack, and only that: it is equal on the
    networks of docs/benchmarks.md, and it is likely to be too high where gradients are poor, or where the way out leads
    to one of the less likely of many classes.  Numbers to be published need ``auto_attack_stages``.

    Args:
      threat_model: linf or l2 with a finite epsilon.
    """
    if not (threat_model.norm.dense and threat_model.is_bounded):
        raise ValueError(
            f"quick_check needs linf or l2 with a finite epsilon, got {threat_model.norm.name} {threat_model.epsilon}"
        )

    def verdict(attack: Attack) -> Attack:
        return dataclasses.replace(attack, stop_on_success=True)

    def aimed(aim: Aim) -> Attack:
        return verdict(auto_pgd(threat_model, loss="dlr", aim=aim, num_steps=TARGETED_STEPS))

    return (
        restarts("apgd-ce", verdict(auto_pgd(threat_model, num_steps=CE_STEPS)), 1),
        targets("apgd-t", aimed, TARGETS),
        restarts("square", verdict(square(threat_model, num_queries=QUERIES)), 1),
    )
