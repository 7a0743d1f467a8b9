"""The mixup report (001): Tables 1 to 8 and Figures 3 to 10, in the report's own form; sound forms on CIFAR-10."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from advjax.papers.published import Published
from advjax.papers.recipe import TINY, Entry, FigurePlan, Part, Scale

_CLEAN = "papers/mixup_report/clean"
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
_SOFT_MNIST, _SOFT_CIFAR = (0.001, 0.002, 0.003, 0.005, 0.01), (0.001, 0.005, 0.01)


def _adversarial(
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


def _soft(data: str, values: tuple[float, ...]) -> tuple[Part, ...]:
    """Table 7: the same with several soft labels, each a run of its own."""
    return tuple(
        _adversarial(
            f"soft_{value:g}_{data}",
            data,
            ("clean", "soft_labels"),
            {"soft_labels": ("001_table7", f"adv_mixup:soft{value:g}")},
            {"run.soft_labels.targets.soft_labels.off_value": value},
            f"{value:g}",
        )
        for value in values
    )


def _partial(data: str) -> tuple[Part, ...]:
    runs, changes = ("clean", "partial"), {"run.partial.optimizer.schedule.epochs": [200, 400]}
    first = _adversarial(f"partial_{data}", data, runs, {"partial": ("001_table8", "adv_partial_pgd")})
    if data == "mnist":
        return (first,)
    dropped = {"partial": ("001_table8", "adv_partial_pgd:lr_drops_200_400")}
    return first, _adversarial("partial_drops_cifar10", data, runs, dropped, changes)


def _table(name: str, *runs: str) -> dict[str, tuple[str, str]]:
    return {run: (name, _TRAININGS[run]) for run in runs}


def _sound(method: str, label: str) -> Part:
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
        shown = ("001", "", label, "cifar10/test", "8/255 in pixels", attack, "accuracy", math.nan, None, None, "", "")
        own = {} if ours == "clean" else {"adaptive": True, "labels": "true"}
        specs.append({"unpublished": Published(*shown), "run": "robust", "our_attack": ours, **own})
    return Part(f"sound_{method}_cifar10", "cifar_adversarial", changes=changes, specs=tuple(specs))


_PRETRAINED, _FRESH = ("vanilla", "mixup", "manifold"), ("vanilla_fresh", "mixup_fresh", "manifold_fresh")
_FULL = Scale()
_CLEAN_SMALL = Scale(changes={"run.*.epochs": 100}, num_examples=1000, num_auto_attack=200)
_MNIST_SMALL = Scale(
    changes={"run.*.epochs": 20, "run.clean.epochs": 100},
    of_config={_CLEAN: {"run.*.epochs": 100}},
    num_examples=1000,
    num_auto_attack=500,
)
_MNIST_MINI = _MNIST_SMALL._replace(changes={"run.*.epochs": 2, "run.clean.epochs": 100}, num_auto_attack=200)
_CIFAR_SMALL = Scale(width=1 / 8, share=0.2, changes={"run.*.epochs": 20}, num_examples=1000, num_auto_attack=200)


def _scales(small: Scale, full: Scale = _FULL) -> dict[str, Scale]:
    return {"full": full, "small": small, "tiny": TINY}


_CLEAN_MNIST, _CLEAN_CIFAR = Part("clean_mnist", _CLEAN, "mnist"), Part("clean_cifar10", _CLEAN, "cifar10")
_FRESH_MNIST = _adversarial("fresh_mnist", "mnist", _FRESH, _table("001_table4", *_FRESH))
_FROM_CLEAN_MNIST = _adversarial(
    "pretrained_mnist", "mnist", ("clean", *_PRETRAINED), _table("001_table4", *_PRETRAINED)
)
_MNIST_SCALES = {**_scales(_MNIST_SMALL), "mini": _MNIST_MINI}
_FROM_CLEAN_CIFAR = _adversarial(
    "pretrained_cifar10", "cifar10", ("clean", *_PRETRAINED), _table("001_table6", *_PRETRAINED)
)
_EPOCH_TABLES = ("001_adversarial_epochs",)


def _before(table: str, part: Part, attack: tuple[str, str]) -> Part:
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


def _mixup(data: str, table: str, training: str) -> Part:
    """Plain mixup from a trained network, which Tables 7 and 8 repeat."""
    return _adversarial(f"mixup_{data}", data, ("clean", "mixup"), {"mixup": (table, training)})


def _images(data: str) -> Part:
    """Images attacked on a trained and on an untrained vanilla network, which one step trains."""
    own = "own_pgd" if data == "mnist" else "own_pgd_v1"
    whole = "papers/mixup_report/clean"
    changes: dict[str, Any] = {"runs": ["vanilla", "mixup"], "evaluation.num_examples": 64}
    changes |= {"evaluation.made_on": ["vanilla"], "run.mixup.targets": {"order": []}, "evaluation.checked": []}
    changes |= {"run.mixup.num_steps": 1, "run.mixup.select": "last"}
    changes |= {"run.mixup.optimizer.schedule.learning_rate": 1e-9}
    changes |= {"evaluation.attacks.order": [own]}
    return Part(f"images_{data}", whole, data, changes, specs=())


def _rows_of_images(caption: str, attack: str) -> FigurePlan:
    networks = {"vanilla": "the trained network", "mixup": "the untrained network"}
    return FigurePlan("images", caption, attacks=(attack,), networks=networks)


_IMAGES_SHOWN = (
    "Of each class, the first image that the trained network classifies correctly, if there is one, is shown after all "
    'steps of the attack. The untrained network is the run "mixup", which takes a single step of no length.'
)
ENTRIES = (
    Entry(
        "001_table1",
        "Clean training on MNIST: accuracy after every epoch, the best epoch, and the report's attack",
        ("001_table1", "001_table3", "001_epochs"),
        (_CLEAN_MNIST,),
        _scales(_CLEAN_SMALL),
        {"full": 5.6, "small": 1.2},
        FigurePlan("curves", "Accuracy and cross-entropy over epochs (Figures 3 and 4)"),
        note="Epochs are compared at equal numbers of epochs: the learning rate is constant until epoch 300. The three "
        "rows of Table 3 are one network, by the report's logs.",
    ),
    Entry(
        "001_table2",
        "Clean training on CIFAR-10: accuracy after every epoch, the best epoch, and the report's attack",
        ("001_table2", "001_table3", "001_epochs"),
        (_CLEAN_CIFAR,),
        _scales(_CIFAR_SMALL),
        {"small": 3.0},
        FigurePlan("curves", "Accuracy and cross-entropy over epochs (Figures 5 and 6)"),
    ),
    Entry(
        "001_table4",
        "Adversarial training on MNIST, from trained and from fresh networks",
        ("001_table4", *_EPOCH_TABLES),
        (_FROM_CLEAN_MNIST, _FRESH_MNIST),
        _MNIST_SCALES,
        {"small": 12.0, "mini": 1.8},
        FigurePlan("curves", "Accuracy over epochs (Figure 9)"),
        note="At scales small and mini, the trained networks to start from have seen 100 epochs instead of 500.",
    ),
    Entry(
        "001_table5",
        "MNIST before and after adversarial training",
        ("001_table5",),
        (
            _before("001_table5", _CLEAN_MNIST, ("own_pgd:mnist", "own_pgd")),
            _adversarial("pretrained_mnist", "mnist", ("clean", *_PRETRAINED), _table("001_table5", *_PRETRAINED)),
        ),
        _MNIST_SCALES,
        {"small": 3.0},
        note="Table 5 repeats cells of Tables 1, 3 and 4.",
    ),
    Entry(
        "001_table6",
        "CIFAR-10 before and after adversarial training",
        ("001_table6", *_EPOCH_TABLES),
        (_before("001_table6", _CLEAN_CIFAR, ("own_pgd:cifar10:v1", "own_pgd_v1")), _FROM_CLEAN_CIFAR),
        _scales(_CIFAR_SMALL),
        {"small": 6.0},
        FigurePlan("curves", "Accuracy over epochs (Figure 10)"),
    ),
    Entry(
        "001_table7",
        "Mixup with soft labels in adversarial training on MNIST",
        ("001_table7", *_EPOCH_TABLES),
        (_mixup("mnist", "001_table7", "adv_mixup:soft0"), *_soft("mnist", _SOFT_MNIST)),
        _MNIST_SCALES,
        {"small": 5.0},
        FigurePlan("curves", "Accuracy over epochs"),
    ),
    Entry(
        "001_table7_cifar10",
        "Mixup with soft labels in adversarial training on CIFAR-10",
        ("001_table7", *_EPOCH_TABLES),
        (_mixup("cifar10", "001_table7", "adv_mixup:soft0"), *_soft("cifar10", _SOFT_CIFAR)),
        _scales(_CIFAR_SMALL),
        {"small": 6.0},
        FigurePlan("curves", "Accuracy over epochs"),
    ),
    Entry(
        "001_table8",
        "Partial PGD on MNIST",
        ("001_table8", *_EPOCH_TABLES),
        (_mixup("mnist", "001_table8", "adv_mixup"), *_partial("mnist")),
        _MNIST_SCALES,
        {"small": 1.0},
        FigurePlan("curves", "Accuracy over epochs"),
    ),
    Entry(
        "001_table8_cifar10",
        "Partial PGD on CIFAR-10, with a constant learning rate and with two drops",
        ("001_table8", *_EPOCH_TABLES),
        (_mixup("cifar10", "001_table8", "adv_mixup"), *_partial("cifar10")),
        _scales(_CIFAR_SMALL),
        {"small": 4.0},
        FigurePlan("curves", "Accuracy over epochs"),
    ),
    Entry(
        "001_figure7",
        "MNIST images, one of each class, attacked on a trained and on an untrained network",
        (),
        (_images("mnist"),),
        _scales(Scale(changes={"run.vanilla.epochs": 5}, num_auto_attack=0), Scale(num_auto_attack=0)),
        {"full": 2.0, "small": 0.1},
        _rows_of_images("The report's attack on MNIST (Figure 7)", "own_pgd"),
        note=_IMAGES_SHOWN,
    ),
    Entry(
        "001_figure8",
        "CIFAR-10 images, one of each class, attacked on a trained and on an untrained network",
        (),
        (_images("cifar10"),),
        _scales(_CIFAR_SMALL._replace(num_auto_attack=0), Scale(num_auto_attack=0)),
        {"small": 1.0},
        _rows_of_images("The report's attack on CIFAR-10 (Figure 8)", "own_pgd_v1"),
        note=f"{_IMAGES_SHOWN} They are shown in pixels, as the networks take them. The report shows normalized images "
        "clipped to [0, 1], the range that its attack moves them into; in pixels, that range is about 0.45 to 0.74, so "
        "attacked images are gray here.",
    ),
    Entry(
        "001_sound_cifar10",
        "Mixup in sound adversarial training on CIFAR-10",
        (),
        (
            _sound("vanilla", "PreActResNet18: adversarial training"),
            _sound("mixup", "PreActResNet18: with mixup"),
            _sound("manifold", "PreActResNet18: with manifold mixup"),
            _sound("soft_labels", "PreActResNet18: with mixup and soft labels"),
            _sound("partial", "PreActResNet18: partial PGD"),
        ),
        _scales(_CIFAR_SMALL._replace(num_auto_attack=0), Scale(num_auto_attack=0)),
        {"small": 4.0},
        FigurePlan("points", "Attacks crafted on each network, 8/255 in pixels"),
        note="No numbers of the report: its attack is neither in pixels nor on the network in inference mode.",
    ),
)
