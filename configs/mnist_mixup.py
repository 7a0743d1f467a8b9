"""Mixup and manifold mixup on MNIST: the first epochs of the clean runs of the mixup report (001).

    python -m advjax.main --config=configs/mnist_mixup.py

LeNet5 on 50,000 class-balanced images with binary cross-entropy on softmax outputs.  Clean test accuracy after five
epochs, mean of three seeds: 98.75, 98.09 and 98.36 % (report: 98.63, 98.30, 98.50); docs/results/mnist_mixup.md has all
epochs.  One run took 57 to 107 s on two CPU cores that other jobs were using as well.
"""

from advjax.experiment import defaults
from advjax.papers.join import publish

EPOCHS = (1, 2, 3, 4, 5, 10, 20, 50, 100, 200)
"""Of those in the logs of the report, the ones that a run may end after to be compared."""


def get_config():
    """The experiment."""

    def run(**changes):
        return defaults.run(
            model={"name": "lenet5"},
            epochs=5,
            batch_size=100,
            optimizer={
                # The report's 500 epochs: with fewer, the rate stays where it is.
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
        # 5,000 images of each class to learn from, 400 to look at.
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
    # Its attack starts elsewhere and has another ball: clean images alone compare.
    publish(
        config,
        (
            {
                "table": "001_epochs",
                "model": "LeNet5",
                "training": f"{method}:{epochs}ep",
                "run": name,
                "our_attack": "clean",
                "when": {f"run.{name}.epochs": epochs},
            }
            for name, method in (("vanilla", "vanilla"), ("mixup", "mixup"), ("manifold", "manifold_mixup"))
            for epochs in EPOCHS
        ),
    )
    return config
