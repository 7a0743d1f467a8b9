"""What the gradient attacks of the PGD family share: the loss they climb, the points they keep, the record they are."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from advjax.attacks.base import Attack, Kept, Problem
from advjax.attacks.losses import Aim, AimedLoss, Loss, cross_entropy, dlr, targeted_cross_entropy, targeted_dlr
from advjax.attacks.threat_model import ThreatModel
from advjax.types import Array

LOSSES: dict[str, Loss] = {"ce": cross_entropy, "dlr": dlr}
AIMED_LOSSES: dict[str, AimedLoss] = {"ce": targeted_cross_entropy, "dlr": targeted_dlr}


@dataclasses.dataclass(frozen=True)
class Goal:
    """What an attack maximises at one image."""

    loss: Loss | AimedLoss
    """Of (logits, label), or of (logits, label, class) with an aim."""
    targeted: bool
    """Labels are the classes to reach, and the loss is minimised."""
    aim: Aim | None
    """The class by which to leave the label."""

    def objective(self, logits: Array, problem: Problem) -> Array:
        """The loss with the sign that makes larger better."""
        aimed = () if self.aim is None else (self.aim(problem),)
        return (-1.0 if self.targeted else 1.0) * self.loss(logits, problem.label, *aimed)

    def cotangents(self, problem: Problem, state: Any, logits: Array) -> Array:
        """[1, classes]: the derivative of the objective."""
        return jax.grad(self.objective)(logits, problem)[None]

    def seen(self, problem: Problem, point: Array, logits: Array) -> Kept:
        """``point`` and what its logits say about it."""
        success = (jnp.argmax(logits) == problem.label) == self.targeted
        return Kept(point, self.objective(logits, problem), success)


def goal(loss: str | Loss | AimedLoss, targeted: bool, aim: Aim | None) -> Goal:
    """The goal that an attack's arguments name.

    Raises:
      ValueError: the loss is unknown, or the attack is both targeted and aimed.
    """
    if isinstance(loss, str) and loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)} or a function of (logits, label), got {loss!r}")
    if targeted and aim is not None:
        raise ValueError("a targeted attack aims at its labels: pass either targeted=True or aim")
    table = LOSSES if aim is None else AIMED_LOSSES
    return Goal(table[loss] if isinstance(loss, str) else loss, targeted, aim)


@dataclasses.dataclass(frozen=True)
class PlannedAttack(Attack):
    """An attack whose schedule was laid out for so many steps: it can be cut short, but not made longer."""

    planned_steps: int = dataclasses.field(kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.num_steps > self.planned_steps:
            raise ValueError(
                f"this attack was planned for {self.planned_steps} steps, got num_steps {self.num_steps}: "
                "build it anew with more steps"
            )


def climb(
    threat_model: ThreatModel,
    num_steps: int,
    goal: Goal,
    *,
    init: Callable[[Problem], Any],
    update: Callable[[Problem, Any, Array, Array], Any],
    planned: bool = False,
) -> Attack:
    """The attack whose state has a ``point`` to ask about and what it has ``kept`` to return.

    ``planned`` says that its schedule is only laid out for ``num_steps`` steps.
    """
    kind = functools.partial(PlannedAttack, planned_steps=num_steps) if planned else Attack
    return kind(
        threat_model,
        num_steps,
        init=init,
        query=lambda state: state.point,
        cotangents=goal.cotangents,
        update=update,
        finalize=lambda problem, state: state.kept.image,
        targeted=goal.targeted,
    )
