"""Adversarial training on MNIST as in the code of the mixup report (001), to reproduce its numbers.

    python -m advjax.main --config=configs/papers/mixup_report/mnist.py:clean,vanilla,mixup

This is not meant as a defense.  After the colon are the runs to train; without it, all nine are trained.  "clean" is
the network that the next five start from.  Images are attacked around noisy copies of themselves, so perturbations
reach 0.6 where the report states 0.3.  The sound forms are configs/mnist_mixup_adversarial.py and its siblings.  Two
details differ from the report, which draws 50,000 training images anew for each epoch, and starts from the clean
network that was best on the test images instead of the last one.

For fewer epochs, such as 50, use ``--config.run.mixup.epochs=50``.  The published numbers after 1 to 200 epochs are
in 001_adversarial_epochs; those of the tables are after 799.  Run for two epochs only
(docs/papers/001_table4.mini.md).
"""

from advjax.experiment import defaults
from advjax.papers.join import publish
from configs.papers.mixup_report.experiment import ATTACK, LOSS, METHODS, adversarial_run, experiment
from configs.papers.mixup_report.published import published

RULES = {"radius": "0.3", "num_steps": 40, "step_size": "0.01"}
SOUND = {"name": "pgd", "norm": "linf", "epsilon": "0.3", "num_steps": 40, "step_size": "0.01"}


def get_config(runs: str = ""):
    """The experiment, with all runs or those in the comma-separated ``runs``."""
    recipe = {"model": {"name": "lenet5", "width": 1.0}, "batch_size": 100}
    clean = defaults.run(
        **recipe,
        epochs=500,
        objective={"loss": LOSS},
        optimizer={
            "schedule": {"name": "step_decay", "learning_rate": 0.1, "epochs": (300, 400), "factor": 0.1},
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 1e-4,
        },
        select="last",
    )
    schedule = {"name": "step_decay", "learning_rate": "0.0002", "epochs": (400, 600), "factor": 0.5}
    recipe |= {"epochs": 800, "optimizer": {"name": "adam", "schedule": schedule}}
    adversarial = {run: adversarial_run(run, RULES, "clean", **recipe) for run in METHODS}
    adversarial |= {
        f"{run}_fresh": adversarial_run(run, RULES, "", **recipe) for run in ("vanilla", "mixup", "manifold")
    }
    config = experiment(
        "Adversarial training of the mixup report on MNIST",
        # Per class, 5,000 images for training and 400 for validation.
        data={"name": "mnist", "per_class": 5400, "num_validation": 4000},
        described={"clean": clean, **adversarial},
        chosen=runs,
        attacks={"pgd_40": SOUND, "own_pgd": {"name": ATTACK, "norm": "linf", "epsilon": "0.6", **RULES}},
    )
    attacks = {run: ("own_pgd", "own_pgd:mnist") for run in adversarial}
    publish(config, published("LeNet5", attacks, "pgd_40", "001_table4", 799))
    return config
