"""Mixup and manifold mixup on MNIST: the first epochs of the clean runs of the mixup report (001).

    python -m advjax.main --config=configs/mnist_mixup.py

A LeNet-5 is trained on 50,000 class-balanced images with binary cross-entropy on softmax outputs.  Clean test
accuracy after five epochs, mean over three seeds: vanilla 98.75%, mixup 98.09%, manifold 98.36% (report: 98.63,
98.30, 98.50); docs/results/mnist_mixup.md has all epochs.  One run took 57 to 107 s on two shared CPU cores.
"""

from advjax.experiment import defaults
from advjax.papers.join import publish

EPOCHS = (1, 2, 3, 4, 5, 10, 20, 50, 100, 200)
"""Epochs in the logs of the report at which a run may end to be comparable."""


def get_config():
    """The experiment."""

    def run(**changes):
        return defaults.run(
            model={"name": "lenet5"},
            epochs=5,
            batch_size=100,
            optimizer={
                # Drops of the report's 500 epochs; in shorter runs, the learning rate stays constant.
                "schedule": {"name": "step_decay", "learning_rate": 0.1, "epochs": (300, 400), "factor": 0.1},
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 1e-4,
            },
            select="last",
            **changes,
        )

    loss = {"name": "bce_on_softmax"}
    pgd = {"name": "pgd", "epsilon": "0.3", "num_steps": 40, "step_size": "0.01"}
    config = defaults.experiment(
        title="Mixup and manifold mixup on MNIST",
        # Per class, 5,000 images for training and 400 for validation.
        data={"name": "mnist", "per_class": 5400, "num_validation": 4000},
        runs=("vanilla", "mixup", "manifold"),
        run={
            "vanilla": run(objective={"loss": loss}),
            "mixup": run(objective={"loss": loss}, targets={"order": ("mixup",), "mixup": {"alpha": 1.0}}),
            "manifold": run(objective={"name": "manifold_mixup", "loss": loss, "alpha": 2.0}),
        },
        evaluation={
            "attacks": {"order": ("fgsm", "pgd_40"), "fgsm": {"name": "fgsm", "epsilon": "0.1"}, "pgd_40": pgd},
            "made_on": "vanilla",
            "num_examples": 1000,
        },
    )
    publish(config, _published())
    return config


def _published():
    """Clean accuracies.  Others are not comparable: the attack of the report has a different start and ball."""
    for name, method in (("vanilla", "vanilla"), ("mixup", "mixup"), ("manifold", "manifold_mixup")):
        for epochs in EPOCHS:
            yield {
                "table": "001_epochs",
                "model": "LeNet5",
                "training": f"{method}:{epochs}ep",
                "run": name,
                "our_attack": "clean",
                "when": {f"run.{name}.epochs": epochs},
            }
