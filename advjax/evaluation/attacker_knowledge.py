"""What an attacker knows of the model that is scored: this decides what may be called robust accuracy.

=================  ==================================================================================================
``NO_ATTACK``      clean images
``NOTHING``        random noise: nobody searched for it
``TRANSFER``       the attack was made on another trained run
``OBLIVIOUS``      the attack was made on the same run without its test-time defense
``SCORES``         adaptive: the attack queried the very model that is scored, defense included, for its outputs
``EVERYTHING``     adaptive, white box: the attack had the gradients of the very model that is scored, defense included
=================  ==================================================================================================
"""

from advjax.evaluation.attack_runs import AttackRun
from advjax.evaluation.scored_model import ScoredModel

NO_ATTACK = "none"
NOTHING = "nothing"
TRANSFER = "source model"
OBLIVIOUS = "undefended model"
SCORES = "scores"
EVERYTHING = "everything"
ADAPTIVE = (EVERYTHING, SCORES)


def attacker_knowledge(model: ScoredModel, run: AttackRun | None) -> str:
    """What the attacker behind ``run`` knows of ``model``; no run stands for clean images."""
    if run is None:
        return NO_ATTACK
    if run.attack.is_noise:
        return NOTHING
    if run.source.name == model.name:
        return SCORES if run.attack.is_query else EVERYTHING
    return OBLIVIOUS if run.source.run == model.run else TRANSFER
