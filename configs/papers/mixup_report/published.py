"""What the mixup report (001) and its logs have on the networks of an experiment."""

from collections.abc import Iterator, Mapping
from typing import Any

from advjax import wiring

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
# Keys of a run that may have any value: the epochs are compared one by one, the others leave the network as it is.
_FREE = ("epochs", "log_every", "validate_every_epochs", "select_metric")
_FREE_DATA = ("dir", "stream", "num_workers")


def published(
    config: Any, model: str, attacks: Mapping[str, tuple[str, str]], last_table: str, last_epoch: int
) -> tuple[dict[str, Any], ...]:
    """Published accuracies, clean and under the report's attack on each network, of runs that are its in every key.

    Neighbouring epochs of the logs differ by points; their means over fifty epochs are nothing that a run here has.

    Args:
      config: the experiment.
      model: what the tables call the network.
      attacks: run -> (the report's attack in ``config.evaluation.attacks``, its name in the tables).
      last_table: has the networks after ``last_epoch``, but for those in ``LAST``.
      last_epoch: the one before the last.
    """
    spec = wiring.plain(config)
    found = [entry for run in attacks for entry in _of_run(spec, run, model, *attacks[run], last_table, last_epoch)]
    return (*_of_clean(spec, model), *found)


def _of_clean(spec: Mapping[str, Any], model: str) -> Iterator[dict[str, Any]]:
    for epochs in EPOCHS:
        entry = {"table": "001_epochs", "model": model, "training": f"vanilla:{epochs}ep", "run": "clean"}
        yield {**entry, "our_attack": "clean", "when": {**_trained(spec, "clean"), "run.clean.epochs": epochs}}


def _of_run(
    spec: Mapping[str, Any], run: str, model: str, attack: str, theirs: str, last_table: str, last_epoch: int
) -> Iterator[dict[str, Any]]:
    start, described_attack = spec["run"][run]["start"], spec["evaluation"]["attacks"][attack]
    trained = _trained(spec, run)
    if start:
        trained |= _trained(spec, start) | {f"run.{start}.epochs": spec["run"][start]["epochs"]}
    attacked = {"attack": theirs, "our_attack": attack, "adaptive": True, "protocol": "faithful"}
    found = [("001_adversarial_epochs", f"{TRAININGS[run]}:{epochs}ep", epochs) for epochs in EPOCHS]
    for table, training, epochs in (*found, (*LAST.get(run, (last_table, TRAININGS[run])), last_epoch)):
        when = {**trained, f"run.{run}.epochs": epochs}
        entry = {"table": table, "model": model, "training": training, "run": run}
        yield {**entry, "attack": "none", "our_attack": "clean", "when": when}
        yield {**entry, **attacked, "when": {**when, f"evaluation.attacks.{attack}": described_attack}}


def _trained(spec: Mapping[str, Any], run: str) -> dict[str, Any]:
    """All that a run is trained with and on, but for its epochs and what it starts from."""
    data = {f"data.{key}": value for key, value in spec["data"].items() if key not in _FREE_DATA}
    return data | {f"run.{run}.{key}": value for key, value in spec["run"][run].items() if key not in _FREE}
