"""What the gradient attacks of the PGD family share: the objective that they maximize."""

import dataclasses
from typing import Any

from advjax.attacks.base import Problem
from advjax.attacks.candidate import Candidate
from advjax.attacks.losses import Aim, AimedLoss, Loss, cross_entropy, dlr, targeted_cross_entropy, targeted_dlr
from advjax.attacks.model_queries import is_fooled
from advjax.types import Array

LOSSES: dict[str, Loss] = {"ce": cross_entropy, "dlr": dlr}
AIMED_LOSSES: dict[str, AimedLoss] = {"ce": targeted_cross_entropy, "dlr": targeted_dlr}


@dataclasses.dataclass(frozen=True)
class Goal:
    """What an attack maximizes for one image."""

    loss: Loss | AimedLoss
    """A function of (logits, label), or of (logits, label, class) with an aim."""
    targeted: bool
    """Labels are the classes to reach, and the loss is minimized."""
    aim: Aim | None
    """Chooses the class towards which the attack leaves the label."""

    def objective(self, problem: Problem, state: Any, logits: Array) -> Array:
        """The loss, negated for a targeted attack: larger is better."""
        aimed = () if self.aim is None else (self.aim(problem),)
        return (-1.0 if self.targeted else 1.0) * self.loss(logits, problem.label, *aimed)

    def candidate(self, problem: Problem, state: Any, logits: Array) -> Candidate:
        """``state.point`` with its objective, and whether it fools the model."""
        fooled = is_fooled(logits, problem.label, self.targeted)
        return Candidate(state.point, self.objective(problem, state, logits), fooled)


def goal(loss: str | Loss | AimedLoss, targeted: bool, aim: Aim | None) -> Goal:
    """Builds the goal from an attack's arguments.

    Raises:
      ValueError: an unknown loss, or an attack that is both targeted and aimed.
    """
    if isinstance(loss, str) and loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)} or a function of (logits, label), got {loss!r}")
    for name, function in (("loss", loss), ("aim", aim)):
        if (
            not (isinstance(loss, str) and name == "loss")
            and not (function is None and name == "aim")
            and not callable(function)
        ):
            raise TypeError(f"{name} must be a function, got {function!r:.100}")
    if targeted and aim is not None:
        raise ValueError("a targeted attack aims at its labels: pass either targeted=True or aim")
    table = LOSSES if aim is None else AIMED_LOSSES
    return Goal(table[loss] if isinstance(loss, str) else loss, targeted, aim)
