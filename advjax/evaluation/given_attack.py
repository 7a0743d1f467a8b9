"""Attacks as ``advjax.evaluate`` takes them: made in Python instead of described by a config."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from advjax.attacks import Attack, AttackFn, Stage, ThreatModel
from advjax.attacks.combine import parts_of, restarts
from advjax.attacks.run_identity import stage_digest
from advjax.attacks.stage_checks import check_stages
from advjax.evaluation.attack_runs import NamedAttack

GivenAttack: TypeAlias = Attack | AttackFn | Sequence[Stage]
"""An attack, a combination of several (``attacks.with_restarts``, ``attacks.worst_of``), or a list of stages."""


def given_attack(
    name: str, attack: Any, threat_model: ThreatModel, image_shape: tuple[int, int, int], num_classes: int
) -> NamedAttack:
    """Gives an attack a name, and an identity by the program that it traces to.

    Args:
      name: that the report gives it.
      attack: the attack.  One that knows its threat model keeps it.
      threat_model: of the others.
      image_shape: [h, w, c].
      num_classes: of the model.

    Raises:
      TypeError: it is none of the above.
      ValueError: it is targeted, or its parts have different threat models.
    """
    single: Any = attack if callable(attack) else None
    is_query = False
    parts = [] if single is None else [part for part in parts_of(single) if isinstance(part, Attack)]
    if parts:
        threat_model, is_query = parts[0].threat_model, all(part.objective is None for part in parts)
    if single is not None:
        stages = (restarts(name, single, 1),)
    elif isinstance(attack, Sequence) and attack and all(isinstance(stage, Stage) for stage in attack):
        stages = tuple(attack)
    else:
        raise TypeError(
            f"attack {name!r} must be an attack, such as attacks.pgd(...), or a list of stages, such as "
            f"attacks.auto_attack_stages(...), got {attack!r:.100}"
        )
    check_stages(stages, threat_model)
    digests = [stage_digest(stage, True, image_shape, num_classes) for stage in stages]
    identity = {"name": name, "norm": threat_model.norm.name, "epsilon": str(threat_model.epsilon), "programs": digests}
    return NamedAttack(name, threat_model, stages, single, False, is_query, None, identity)
