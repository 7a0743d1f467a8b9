"""Adversarial training on CIFAR-10 as in the code of the mixup report (001), to reproduce its numbers.

    python -m advjax.main --config=configs/papers/mixup_report/cifar.py:clean,vanilla,mixup

This is not meant as a defense.  After the colon are the runs to train; without it, all six are trained.  "clean" is
the network that the others start from: the last one, whereas the report takes the one that was best on the test
images.  The attack operates on normalized images, where its 8/255 is 2/255 in pixels, but clips them to [0, 1], which
moves pixels by up to 0.74.  Its epsilon is therefore set to 1, which guarantees only that its results are valid
images.  "vanilla", "mixup" and "manifold" are trained with the earlier version of the attack.  The clean accuracy of
"partial" collapses after some thirty epochs; ``--config.run.partial.objective.batch_norm=train_keep``, or ``eval``,
shows the role of BatchNorm in that.

The published numbers after 1 to 200 epochs are in 001_adversarial_epochs; those of the tables are after 499.  Not run
yet.
"""

from advjax.experiment import defaults
from advjax.papers.join import publish
from configs.papers.mixup_report.experiment import ATTACK, LOSS, METHODS, adversarial_run, experiment
from configs.papers.mixup_report.published import published

MEAN = tuple(value / 255 for value in (125.3, 123.0, 113.9))
STD = tuple(value / 255 for value in (63.0, 62.1, 66.7))
RULES = {"radius": "8/255", "num_steps": 7, "step_size": "2/255", "mean": MEAN, "std": STD}
VERSIONS = {"vanilla": "v1", "mixup": "v1", "manifold": "v1", "soft_labels": "v2", "partial": "v2"}
SOUND = {"name": "pgd", "norm": "linf", "epsilon": "2/255", "num_steps": 20, "step_size": "1/510"}


def get_config(runs: str = ""):
    """The experiment, with all runs or those in the comma-separated ``runs``."""

    def recipe(epochs: int, drops: tuple[int, ...]):
        return {
            "model": {"name": "preact_resnet18", "width": 1.0, "final_norm": False, "mean": MEAN, "std": STD},
            "epochs": epochs,
            "batch_size": 100,
            "augmentation": {
                "order": ("horizontal_flip", "pad_crop"),
                "pad_crop": {"padding": 2, "mode": "constant"},
                "horizontal_flip": {"probability": 0.5},
            },
            "optimizer": {
                "schedule": {"name": "step_decay", "learning_rate": 0.1, "epochs": drops, "factor": 0.1},
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 1e-4,
            },
        }

    clean = defaults.run(objective={"loss": LOSS}, select="last", **recipe(2000, (500, 1000, 1500)))
    adversarial = {
        run: adversarial_run(run, {**RULES, "version": VERSIONS[run]}, "clean", **recipe(500, (499,)))
        for run in METHODS
    }
    own = {"name": ATTACK, "norm": "linf", "epsilon": 1.0, **RULES}
    config = experiment(
        "Adversarial training of the mixup report on CIFAR-10",
        data={"name": "cifar10"},
        described={"clean": clean, **adversarial},
        chosen=runs,
        attacks={
            "pgd_20": SOUND,
            "own_pgd_v1": {**own, "version": "v1"},
            "own_pgd_v2": {**own, "version": "v2"},
        },
    )
    attacks = {run: (f"own_pgd_{VERSIONS[run]}", f"own_pgd:cifar10:{VERSIONS[run]}") for run in adversarial}
    publish(config, published("PreActResNet18", attacks, "pgd_20", "001_table6", 499))
    return config
