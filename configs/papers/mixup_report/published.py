"""What the mixup report (001) and its logs have on the networks of an experiment."""

from collections.abc import Iterator, Mapping
from typing import Any

EPOCHS = (1, 2, 5, 10, 20, 50, 100, 200)
"""Of those in the logs, the ones that a run may end after to be compared."""
TRAININGS = {
    "vanilla": "adv_vanilla:from_pretrained",
    "mixup": "adv_mixup:from_pretrained",
    "manifold": "adv_manifold_mixup:from_pretrained",
    "soft_labels": "adv_mixup:from_pretrained:soft0.01",
    "partial": "adv_partial_pgd:from_pretrained",
    "vanilla_fresh": "adv_vanilla:from_untrained",
    "mixup_fresh": "adv_mixup:from_untrained",
    "manifold_fresh": "adv_manifold_mixup:from_untrained",
}
"""What the logs call the training of a run."""
LAST = {
    "soft_labels": ("001_table7", "adv_mixup:soft0.01"),
    "partial": ("001_table8", "adv_partial_pgd"),
}
"""Runs whose networks before the last epoch are in a table of their own, and what it calls them."""


def published(
    model: str, attacks: Mapping[str, tuple[str, str]], last_table: str, last_epoch: int
) -> Iterator[dict[str, Any]]:
    """Published accuracies, clean and under the report's attack on each network, after the epochs that they are for.

    Neighbouring epochs of the logs differ by points; their means over fifty epochs are nothing that a run here has.

    Args:
      model: what the tables call the network.
      attacks: run -> (the report's attack in ``config.evaluation.attacks``, its name in the tables).
      last_table: has the networks after ``last_epoch``, but for those in ``LAST``.
      last_epoch: the one before the last.
    """
    for epochs in EPOCHS:
        entry = {"table": "001_epochs", "model": model, "training": f"vanilla:{epochs}ep", "run": "clean"}
        yield {**entry, "our_attack": "clean", "when": {"run.clean.epochs": epochs}}
    for run, (ours, theirs) in attacks.items():
        attacked = {"attack": theirs, "our_attack": ours, "adaptive": True, "protocol": "faithful"}
        found = [("001_adversarial_epochs", f"{TRAININGS[run]}:{epochs}ep", epochs) for epochs in EPOCHS]
        for table, training, epochs in (*found, (*LAST.get(run, (last_table, TRAININGS[run])), last_epoch)):
            entry = {"table": table, "model": model, "training": training, "run": run}
            entry |= {"when": {f"run.{run}.epochs": epochs}}
            yield {**entry, "attack": "none", "our_attack": "clean"}
            yield {**entry, **attacked}
