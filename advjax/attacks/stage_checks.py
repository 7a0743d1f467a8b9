"""What a stage must be, and what its attack must return."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks.base import Attack
from advjax.attacks.combine import Stage, call_attack, parts_of
from advjax.attacks.threat_model import ThreatModel
from advjax.types import Array, AttackFn, AttackResult, Key


def describe(threat_model: ThreatModel) -> tuple[str, float, tuple[float, ...]]:
    """Norm, epsilon and bounds as plain data."""
    return threat_model.norm.name, float(threat_model.epsilon), tuple(map(float, threat_model.bounds))


def check_stages(stages: Sequence[Stage], threat_model: ThreatModel) -> None:
    """Checks what is to be run.

    Raises:
      TypeError: something is not a stage, or a stage has no attack.
      ValueError: there are no stages, or one is targeted or attacks in another threat model.
    """
    if not isinstance(threat_model, ThreatModel):
        raise TypeError(f"threat_model must be a ThreatModel, such as attacks.linf(8 / 255), got {threat_model!r:.100}")
    if not stages:
        raise ValueError("run_stages needs at least one stage")
    for stage in stages:
        if not isinstance(stage, Stage):
            raise TypeError(
                "stages must be a list of stages, such as attacks.auto_attack_stages(...) or "
                f"[attacks.Stage('pgd', lambda round: attack, lambda num_classes: 1)], and holds {stage!r:.100}"
            )
        attack = stage.attack(jnp.int32(0))
        if not callable(attack):
            raise TypeError(f"stage {stage.name!r} must make an attack for each round, got {attack!r:.100}")
        for part in parts_of(attack):
            if isinstance(part, Attack):
                _check_attack(stage.name, part, threat_model)


def _check_attack(name: str, attack: Attack, threat_model: ThreatModel) -> None:
    if attack.targeted:
        raise ValueError(
            f"stage {name!r} is targeted: it would take the labels for targets and pull images into "
            "their own classes; use the untargeted attack, or over_targets"
        )
    norm, epsilon, bounds = describe(attack.threat_model)
    expected_norm, expected_epsilon, expected_bounds = describe(threat_model)
    # An epsilon may have become a float32 on the way.
    same = norm == expected_norm and np.float32(epsilon) == np.float32(expected_epsilon)
    if not same or bounds != expected_bounds:
        raise ValueError(
            f"stage {name!r} attacks in {norm} {epsilon:g} with bounds {list(bounds)}, but threat_model "
            f"is {expected_norm} {expected_epsilon:g} with bounds {list(expected_bounds)}: build both the same"
        )


def call_stage(
    stage: Stage, logits_fn: Any, number: Array | int, images: Array, labels: Array, keys: Key, until_success: bool
) -> AttackResult:
    """One round of a stage.

    Raises:
      TypeError: the attack is a function that cannot be traced, or returns something else.
      ValueError: it returns another number of images.
    """
    attack: AttackFn = stage.attack(jnp.asarray(number))
    try:
        result: Any = call_attack(attack, logits_fn, images, labels, keys, until_success=until_success)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
        raise TypeError(
            f"stage {stage.name!r}: an attack is traced by JAX, which does not know the values of its arrays then: "
            "compute with jax.numpy, without branches on values, or call other code by jax.pure_callback"
        ) from error
    if not isinstance(result, AttackResult):
        raise TypeError(f"stage {stage.name!r}: an attack must return an AttackResult, got {type(result).__name__}")
    shapes = [np.shape(result.images), *(np.shape(flags) for flags in (result.success, result.steps))]
    if shapes != [images.shape, labels.shape, labels.shape]:
        raise ValueError(
            f"stage {stage.name!r}: an attack must return one image, success and number of steps for each of the "
            f"images {images.shape}, got shapes {', '.join(map(str, shapes))}"
        )
    return result
