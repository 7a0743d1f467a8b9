"""The experiments of the mixup report (001), which several of its tables and figures share."""

from collections.abc import Iterator, Mapping
from typing import Any

from advjax.papers.published import unpublished
from advjax.papers.recipe import Part

CLEAN = "papers/mixup_report/clean"
_EPOCHS = (1, 2, 5, 10, 20, 50, 100, 200)
_ATTACK = "configs.papers.mixup_report.attack:noisy_center_pgd"
_MNIST_PGD = {
    **{"name": _ATTACK, "norm": "linf", "epsilon": "0.6", "made_on": "self"},
    **{"radius": "0.3", "num_steps": 40, "step_size": "0.01"},
}
_SOUND = {"mnist": "pgd_40", "cifar10": "pgd_20"}
"""Attacks that keep to the radius that the report states."""
_TRAININGS = {
    "vanilla": "adv_vanilla:from_pretrained",
    "mixup": "adv_mixup:from_pretrained",
    "manifold": "adv_manifold_mixup:from_pretrained",
    "vanilla_fresh": "adv_vanilla:from_untrained",
    "mixup_fresh": "adv_mixup:from_untrained",
    "manifold_fresh": "adv_manifold_mixup:from_untrained",
    "soft_labels": "adv_mixup:from_pretrained:soft{value}",
    "partial": "adv_partial_pgd:from_pretrained",
}


def adversarial(
    name: str,
    data: str,
    runs: tuple[str, ...],
    last: Mapping[str, tuple[str, str]],
    changes: Mapping[str, Any] | None = None,
    soft: str = "",
) -> Part:
    """Adversarial runs that are measured on the test images after every epoch, clean and attacked, as in the report.

    They end before the last epoch, in which the learning rate drops on CIFAR-10: the report's tables are about the
    networks before it.

    Args:
      name: of the part.
      data: "mnist" or "cifar10".
      runs: of the config.
      last: run -> table of the network before the last epoch, and its training there.
      changes: further ones.
      soft: value of soft labels in the name of the training.
    """
    config = "papers/mixup_report/mnist" if data == "mnist" else "papers/mixup_report/cifar"
    measured = {"data.validate_on_test": True, "data.num_validation": 0}
    measured |= {"run.*.validate_loss": True}
    measured |= {"data.per_class": 5000} if data == "mnist" else {}
    if "clean" in runs:
        # The network of Tables 1 and 2, which all start from: the best on the test images.
        measured |= {"run.clean.select": "best", "run.clean.select_metric": "accuracy"}
    adversarial = [run for run in runs if run != "clean"]
    for run in adversarial:
        measured[f"run.{run}.epochs"] = 799 if data == "mnist" else 499
        measured[f"run.{run}.validation_attack"] = _MNIST_PGD if data == "mnist" else _cifar_pgd(run)
    specs = tuple(spec for run in adversarial for spec in _specs(data, run, last[run], soft))
    return Part(name, config, ",".join(runs), {**measured, **(changes or {})}, specs)


def _cifar_pgd(run: str) -> dict[str, Any]:
    mean, std = ([value / 255 for value in values] for values in ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)))
    return {
        **{"name": _ATTACK, "norm": "linf", "epsilon": 1.0, "made_on": "self", "version": _version(run)},
        **{"radius": "8/255", "num_steps": 7, "step_size": "2/255", "mean": mean, "std": std},
    }


def _version(run: str) -> str:
    return "v2" if run in ("soft_labels", "partial") else "v1"


def _specs(data: str, run: str, last: tuple[str, str], soft: str) -> Iterator[dict[str, Any]]:
    model = "LeNet5" if data == "mnist" else "PreActResNet18"
    version = "" if data == "mnist" else f"_{_version(run)}"
    theirs, ours = ("own_pgd:mnist", "own_pgd") if data == "mnist" else (f"own_pgd:cifar10:{version[1:]}", "")
    attacked = {"attack": theirs, "our_attack": ours or f"own_pgd{version}", "sound_attack": _SOUND[data]}
    attacked = {**attacked, "adaptive": True, "protocol": "faithful"}
    training = _TRAININGS[run].format(value=soft)
    if last[1].endswith("lr_drops_200_400"):
        training = f"{training}:lr_drops_200_400"
    for epochs in _EPOCHS:
        found = {"table": "001_adversarial_epochs", "model": model, "training": f"{training}:{epochs}ep", "run": run}
        found = {**found, "when": {f"run.{run}.epochs": epochs}}
        yield {**found, "attack": "none", "our_attack": "clean"}
        yield {**found, **attacked}
    found = {"table": last[0], "model": model, "training": last[1], "run": run}
    yield {**found, "attack": "none", "our_attack": "clean"}
    yield {**found, **attacked}


def soft(data: str, values: tuple[float, ...]) -> tuple[Part, ...]:
    """Table 7: the same with several soft labels, each a run of its own."""
    return tuple(
        adversarial(
            f"soft_{value:g}_{data}",
            data,
            ("clean", "soft_labels"),
            {"soft_labels": ("001_table7", f"adv_mixup:soft{value:g}")},
            {"run.soft_labels.targets.soft_labels.off_value": value},
            f"{value:g}",
        )
        for value in values
    )


def partial(data: str) -> tuple[Part, ...]:
    """Table 8: partial PGD; on CIFAR-10 with drops of the learning rate as well."""
    runs, changes = ("clean", "partial"), {"run.partial.optimizer.schedule.epochs": [200, 400]}
    first = adversarial(f"partial_{data}", data, runs, {"partial": ("001_table8", "adv_partial_pgd")})
    if data == "mnist":
        return (first,)
    dropped = {"partial": ("001_table8", "adv_partial_pgd:lr_drops_200_400")}
    return first, adversarial("partial_drops_cifar10", data, runs, dropped, changes)


def table(name: str, *runs: str) -> dict[str, tuple[str, str]]:
    """Run -> table and its training there, for runs that a table has under their usual names."""
    return {run: (name, _TRAININGS[run]) for run in runs}


def sound(method: str, label: str) -> Part:
    """Adversarial training on CIFAR-10 with a PGD in pixels on the network in inference mode."""
    targets = {"mixup": {"order": ["mixup"], "mixup": {"alpha": 1.0}}}
    soft_labels = {"off_value": 0.01}
    targets |= {"soft_labels": {**targets["mixup"], "order": ["soft_labels", "mixup"], "soft_labels": soft_labels}}
    targets |= {"partial": {"order": ["partial_mix"], "partial_mix": {"alpha": 1.0}}}
    changes: dict[str, Any] = {"run.robust.targets": targets.get(method, {"order": []})}
    if method == "manifold":
        loss = {"name": "cross_entropy"}
        changes["run.robust.objective"] = {"name": "manifold_mixup", "loss": loss, "alpha": 2.0}
    changes["data.num_validation"] = 1000
    changes["run.robust.select_metric"] = "attacked_accuracy"
    specs = []
    for attack, ours in {"none": "clean", "PGD-50": "pgd_50", "AutoAttack": "auto_attack"}.items():
        shown = unpublished("001", label, "cifar10/test", "8/255 in pixels", attack)
        own = {} if ours == "clean" else {"adaptive": True, "labels": "true"}
        specs.append({"unpublished": shown, "run": "robust", "our_attack": ours, **own})
    return Part(f"sound_{method}_cifar10", "cifar_adversarial", changes=changes, specs=tuple(specs))


def before(table: str, part: Part, attack: tuple[str, str]) -> Part:
    """The clean networks of a part, in a table that repeats them beside the networks after adversarial training."""
    model = "LeNet5" if part.argument == "mnist" else "PreActResNet18"
    theirs, ours = attack
    specs = []
    for run, training in {"vanilla": "vanilla", "mixup": "mixup", "manifold": "manifold_mixup"}.items():
        found = {"table": table, "model": model, "training": training, "run": run}
        specs.append({**found, "attack": "none", "our_attack": "clean"})
        attacked = {"attack": theirs, "our_attack": ours, "sound_attack": _SOUND[part.argument]}
        specs.append({**found, **attacked, "adaptive": True, "protocol": "faithful"})
    return part._replace(specs=tuple(specs))


def mixup(data: str, table: str, training: str) -> Part:
    """Plain mixup from a trained network, which Tables 7 and 8 repeat."""
    return adversarial(f"mixup_{data}", data, ("clean", "mixup"), {"mixup": (table, training)})


def images(data: str) -> Part:
    """Images attacked on a trained and on an untrained vanilla network, which one step trains."""
    own = "own_pgd" if data == "mnist" else "own_pgd_v1"
    whole = "papers/mixup_report/clean"
    changes: dict[str, Any] = {"runs": ["vanilla", "mixup"], "evaluation.num_examples": 64}
    changes |= {"evaluation.made_on": ["vanilla"], "run.mixup.targets": {"order": []}, "evaluation.checked": []}
    changes |= {"run.mixup.num_steps": 1, "run.mixup.select": "last"}
    changes |= {"run.mixup.optimizer.schedule.learning_rate": 1e-9}
    changes |= {"evaluation.attacks.order": [own]}
    return Part(f"images_{data}", whole, data, changes, specs=())
