"""Shared parts of the two experiments of the mixup report (001)."""

from collections.abc import Mapping
from typing import Any

from advjax.experiment import defaults

ATTACK = "configs.papers.mixup_report.attack:noisy_center_pgd"
OBJECTIVE = "configs.papers.mixup_report.training:adversarial"
LOSS = {"name": "bce_on_softmax"}
METHODS = {"vanilla": "vanilla", "mixup": "mixup", "manifold": "manifold", "soft_labels": "mixup", "partial": "partial"}
"""Adversarial run -> ``method`` of its objective."""
_OFF_VALUE = 0.01


def adversarial_run(run: str, attack: Mapping[str, Any], start: str, **recipe: Any) -> dict[str, Any]:
    """One of ``METHODS``, attacked in train mode.

    It starts from the parameters of run ``start``, or from scratch if that is "".  Soft labels are set before the
    attack, which uses the hard labels only.
    """
    changes = dict(recipe)
    if run == "soft_labels":
        changes["targets"] = {"order": ("soft_labels",), "soft_labels": {"off_value": _OFF_VALUE}}
    objective = {"name": OBJECTIVE, "loss": LOSS, "method": METHODS[run], "batch_norm": "train_update", **attack}
    return defaults.run(objective=objective, start=start, select="last", **changes)


def experiment(
    title: str,
    data: Mapping[str, Any],
    described: Mapping[str, Any],
    chosen: str,
    attacks: Mapping[str, Any],
) -> Any:
    """The experiment.

    Args:
      title: title of the report.
      data: ``data`` of the config.
      described: all runs, "clean" first.
      chosen: comma-separated names of the runs to train; "" for all.
      attacks: attacks of the evaluation, in order; report cards use the first.
    """
    runs = tuple(chosen.split(",")) if chosen else tuple(described)
    attacked = tuple(run for run in runs if run != "clean") or runs
    return defaults.experiment(
        title=title,
        data=data,
        runs=runs,
        run=dict(described),
        evaluation={
            "attacks": {"order": tuple(attacks), **attacks},
            # Evaluates each network on the final points of the attack on itself, not on the first successful ones.
            "made_on": attacked,
            "protocol": "faithful",
            "checked": attacked[:1],
            "batch_size": 500,
        },
    )
