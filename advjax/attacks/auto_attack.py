"""AutoAttack: ensembles of attacks without parameters to tune (Croce & Hein 2020)."""

import dataclasses

from advjax.attacks.auto_pgd import auto_pgd
from advjax.attacks.base import Attack
from advjax.attacks.combine import Stage, all_rounds, restarts, targets, worst_of
from advjax.attacks.fab import fab
from advjax.attacks.losses import Aim
from advjax.attacks.square import square
from advjax.attacks.threat_model import ThreatModel
from advjax.types import AttackFn

VERSIONS = ("standard", "plus", "rand")


def auto_attack_stages(threat_model: ThreatModel, *, version: str = "standard") -> tuple[Stage, ...]:
    """The attacks of AutoAttack, in order, each for the images that the ones before it left robust.

    ``standard``: APGD-CE, APGD-T and FAB-T with 9 targets each, Square with 5,000 queries.  ``plus``: APGD-CE and
    APGD-DLR and FAB five times, Square, APGD-T, FAB-T.  ``rand``: APGD-CE and APGD-DLR, for the ``expectation`` of a
    stochastic model over 20 draws.  All gradient attacks make 100 steps (Croce & Hein 2020; parameters of the
    authors' implementation, whose numbers these are made to equal).  Fewer than 10 classes have fewer targets.

    Args:
      threat_model: linf or l2 with a finite epsilon.
      version: one of ``VERSIONS``.
    """
    if version not in VERSIONS:
        raise ValueError(f"version must be one of {', '.join(VERSIONS)}, got {version!r}")
    if not (threat_model.norm.dense and threat_model.is_bounded):
        raise ValueError(
            f"auto_attack needs linf or l2 with a finite epsilon, got {threat_model.norm.name} {threat_model.epsilon}"
        )

    def verdict(attack: Attack) -> Attack:
        return dataclasses.replace(attack, stop_on_success=True)

    def aimed_pgd(aim: Aim) -> Attack:
        return verdict(auto_pgd(threat_model, loss="dlr", aim=aim))

    def aimed_fab(aim: Aim) -> Attack:
        return verdict(fab(threat_model, aim=aim))

    ce, dlr = (verdict(auto_pgd(threat_model, loss=loss)) for loss in ("ce", "dlr"))
    last = restarts("square", verdict(square(threat_model)), 1)
    aimed = targets("apgd-t", aimed_pgd, 9), targets("fab-t", aimed_fab, 9)
    if version == "standard":
        return restarts("apgd-ce", ce, 1), *aimed, last
    if version == "rand":
        return restarts("apgd-ce", ce, 1), restarts("apgd-dlr", dlr, 1)
    return (
        restarts("apgd-ce", ce, 5),
        restarts("apgd-dlr", dlr, 5),
        restarts("fab", verdict(fab(threat_model)), 1),
        restarts("fab-restarts", verdict(fab(threat_model, random_start=True)), 4),
        last,
        *aimed,
    )


def auto_attack(threat_model: ThreatModel, *, version: str = "standard") -> AttackFn:
    """AutoAttack as one attack on one batch: see ``auto_attack_stages`` for what it runs.

    Every step evaluates the whole batch, however few images are still robust; for a whole data set use ``run_stages``,
    which only carries on with the survivors.

    Example::

        result = jax.jit(functools.partial(auto_attack(linf(8 / 255)), logits_fn))(images, labels, jax.random.key(0))
    """
    return worst_of(*(all_rounds(stage) for stage in auto_attack_stages(threat_model, version=version)))
