"""Networks, training recipes and evaluation attacks shared by several configs.

Configs that import this module must be run in the folder that contains ``configs``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from advjax.experiment import defaults

Config: TypeAlias = Any
"""A ``ConfigDict``, whose attributes are unknown to type checkers."""
CIFAR_LINF = {"norm": "linf", "epsilon": "8/255"}
CIFAR_PGD = {"name": "pgd", **CIFAR_LINF, "num_steps": 10, "step_size": "2/255", "returns": "last"}
MNIST_LINF = {"norm": "linf", "epsilon": "0.3"}
MNIST_PGD = {"name": "pgd", **MNIST_LINF, "num_steps": 40, "step_size": "0.01", "returns": "last"}


def cifar_run(**changes: Any) -> dict[str, Any]:
    """A PreActResNet-18 with the usual recipe of adversarial training on CIFAR-10, but without an attack."""
    recipe = {
        "model": {
            "name": "preact_resnet18",
            "width": 1.0,
            "final_norm": True,
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2470, 0.2435, 0.2616),
        },
        "epochs": 30,
        "augmentation": {
            "order": ("pad_crop", "horizontal_flip"),
            "pad_crop": {"padding": 4, "mode": "constant"},
            "horizontal_flip": {"probability": 0.5},
        },
        "optimizer": {"schedule": {"peak_learning_rate": 0.1}, "weight_decay": 5e-4},
    }
    return defaults.run(**(recipe | changes))


def cifar_experiment(title: str, **runs: Mapping[str, Any]) -> Config:
    """Runs on CIFAR-10, evaluated at 8/255 on the first 1,000 test images."""
    attacks = {"order": ("pgd_50", "auto_attack"), "pgd_50": {**CIFAR_PGD, "num_steps": 50, "returns": "best"}}
    attacks["auto_attack"] = {"name": "auto_attack", **CIFAR_LINF}
    return _experiment(title, "cifar10", 1000, runs, attacks)


def mnist_run(**changes: Any) -> dict[str, Any]:
    """A LeNet-5 trained against ``MNIST_PGD``; the most robust checkpoint on validation images is selected."""
    recipe = {
        "model": {"name": "lenet5", "width": 1.0},
        "epochs": 30,
        "batch_size": 100,
        "attack": MNIST_PGD,
        # Decays to 0 in the last epoch, whatever the number of epochs.
        "optimizer": {"name": "adam", "schedule": {"name": "cosine", "learning_rate": 0.001}},
        "select_metric": "attacked_accuracy",
    }
    return defaults.run(**(recipe | changes))


def mnist_experiment(title: str, **runs: Mapping[str, Any]) -> Config:
    """Plain adversarial training and other runs on MNIST, evaluated at 0.3 on the first 1,000 test images.

    Per class, 5,000 images are for training and 400 for selecting the checkpoint.
    """
    attacks = {
        "order": ("pgd_40", "auto_attack"),
        "pgd_40": {**MNIST_PGD, "num_restarts": 5, "returns": "best"},
        "auto_attack": {"name": "auto_attack", **MNIST_LINF},
    }
    return _experiment(title, "mnist", 4000, {"vanilla": mnist_run(), **runs}, attacks, per_class=5400)


def small_cifar_run(**changes: Any) -> dict[str, Any]:
    """The 62,006-parameter network of the Dauphine report (004), with its training recipe."""
    recipe = {
        "model": {"name": "net62k", "width": 1.0},
        "epochs": 10,
        "select": "last",
        "batch_size": 32,
        "optimizer": {"schedule": {"name": "constant", "learning_rate": 0.001}, "momentum": 0.9},
        "log_every": 500,
    }
    return defaults.run(**(recipe | changes))


def small_cifar_experiment(title: str, **runs: Mapping[str, Any]) -> Config:
    """Runs on the CIFAR-10 splits of the Dauphine report (004), evaluated under its attacks, without random starts.

    Its protocol is the whole attack on each network itself, and the last of its images.
    """
    pgd = {"name": "pgd", "norm": "linf", "epsilon": "0.03", "step_size": "0.01", "random_start": False}
    pgd["returns"] = "last"
    attacks = {
        "order": ("fgsm", "pgd_10", "pgd_40"),
        "fgsm": {"name": "fgsm", "norm": "linf", "epsilon": "0.03"},
        "pgd_10": {**pgd, "num_steps": 10},
        "pgd_40": {**pgd, "num_steps": 40},
    }
    config = _experiment(title, "cifar10", 0, runs, attacks, made_on=tuple(runs), protocol="faithful")
    config.data.update(train_split="train[1024:]", test_split="train[:1024]")
    config.evaluation.update(num_examples=0, batch_size=512)
    return config


def small_cifar_published(
    run: str, table: str, training: str, attacks: Sequence[str], when: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], ...]:
    """Entries for the accuracies of a network in the Dauphine report (004), clean and under attacks crafted on it.

    Args:
      run: our run that corresponds to the network.
      table: a name in ``advjax.papers.published.TABLES``.
      training: name of its training in the table.
      attacks: "clean", or names of attacks of ``small_cifar_experiment``.
      when: keys of the run and the values that the numbers are for, if they differ from the config.
    """
    theirs = {"clean": "none", "fgsm": "FGSM:eps0.03"}
    theirs |= {f"pgd_{steps}": f"PGD{steps}:eps0.03,alpha0.01" for steps in (10, 40)}
    values = {f"run.{run}.{key}": value for key, value in (when or {}).items()}
    found = {"table": table, "training": training, "run": run, "when": values}
    made = {"adaptive": True, "protocol": "faithful"}
    return tuple(
        {**found, "attack": theirs[ours], "our_attack": ours, **(made if ours != "clean" else {})} for ours in attacks
    )


def _experiment(
    title: str,
    data: str,
    num_validation: int,
    runs: Mapping[str, Any],
    attacks: Mapping[str, Any],
    per_class: int = 0,
    **evaluation: Any,
) -> Config:
    evaluation = {"made_on": next(iter(runs)), "num_examples": 1000, "batch_size": 512, **evaluation}
    return defaults.experiment(
        title=title,
        data={"name": data, "num_validation": num_validation, "per_class": per_class},
        runs=tuple(runs),
        run=dict(runs),
        evaluation={"attacks": attacks, **evaluation},
    )
