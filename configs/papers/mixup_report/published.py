"""Published numbers of the mixup report (001) and its logs for the runs of an experiment."""

from collections.abc import Iterator, Mapping
from typing import Any

EPOCHS = (1, 2, 5, 10, 20, 50, 100, 200)
"""Epochs in the logs at which a run may end to be comparable."""
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
"""Run -> name of its training in the logs."""
LAST = {
    "soft_labels": ("001_table7", "adv_mixup:soft0.01"),
    "partial": ("001_table8", "adv_partial_pgd"),
}
"""Run whose network before the last epoch is in a separate table -> that table, and its name there."""


def published(
    model: str, attacks: Mapping[str, tuple[str, str]], sound: str, last_table: str, last_epoch: int
) -> Iterator[dict[str, Any]]:
    """Entries for clean accuracies and accuracies under the report's attack on each network, at selected epochs.

    Adjacent epochs of the logs differ by several points.  Their means over fifty epochs have no counterpart here.

    Args:
      model: name of the network in the tables.
      attacks: run -> (the report's attack in ``config.evaluation.attacks``, its name in the tables).
      sound: attack in ``config.evaluation.attacks`` that keeps to the radius that the report states.
      last_table: table of the networks after ``last_epoch``, except those in ``LAST``.
      last_epoch: the epoch before the last.
    """
    for epochs in EPOCHS:
        entry = {"table": "001_epochs", "model": model, "training": f"vanilla:{epochs}ep", "run": "clean"}
        yield {**entry, "our_attack": "clean", "when": {"run.clean.epochs": epochs}}
    for run, (ours, theirs) in attacks.items():
        attacked = {"attack": theirs, "our_attack": ours, "sound_attack": sound, "adaptive": True}
        attacked["protocol"] = "faithful"
        found = [("001_adversarial_epochs", f"{TRAININGS[run]}:{epochs}ep", epochs) for epochs in EPOCHS]
        for table, training, epochs in (*found, (*LAST.get(run, (last_table, TRAININGS[run])), last_epoch)):
            entry = {"table": table, "model": model, "training": training, "run": run}
            entry |= {"when": {f"run.{run}.epochs": epochs}}
            yield {**entry, "attack": "none", "our_attack": "clean"}
            yield {**entry, **attacked}
