"""What a report says of its attacks: stages, steps and rounds."""

from typing import NotRequired, TypedDict

import jax.numpy as jnp

from advjax.evaluation.attack_runs import NamedAttack


class StageFacts(TypedDict):
    """One stage of an attack."""

    name: str
    steps: int | None
    """Steps, or queries of an attack without gradients; None for a combination of attacks."""
    rounds: int
    """Restarts, or targets of a targeted attack."""
    is_query: NotRequired[bool]
    """Whether it uses outputs alone."""


class AttackFacts(TypedDict):
    """One attack of an evaluation."""

    name: str
    norm: str | None
    epsilon: float | None
    stages: list[StageFacts]
    search_dtype: str | None
    """Floating-point type of the search, if not the model's own."""


def attack_facts(attack: NamedAttack, num_classes: int) -> AttackFacts:
    """The facts about an attack on a model with so many classes; nothing is computed."""
    stages = []
    for stage in attack.stages:
        # Only the builder of an attack looks at its round, and only at its value inside jit.
        single = stage.attack(jnp.int32(0))
        facts = StageFacts(
            name=stage.name, steps=getattr(single, "num_steps", None), rounds=stage.num_rounds(num_classes)
        )
        if getattr(single, "objective", True) is None:
            facts["is_query"] = True
        stages.append(facts)
    norm = None if attack.is_noise else attack.norm
    return AttackFacts(
        name=attack.name, norm=norm, epsilon=attack.epsilon, stages=stages, search_dtype=attack.search_dtype
    )
