"""Soft labels and mixup in adversarial training on MNIST (mixup report 001, section 3.4, in its sound form).

    python -m advjax.main --config=configs/mnist_soft_labels.py

The report's off values are 0.001 to 0.01: ``--config.run.robust.targets.soft_labels.off_value=0.001``.  Expected
numbers: not run yet.
"""

from configs import common


def get_config():
    """The experiment."""
    targets = {"order": ("soft_labels", "mixup"), "soft_labels": {"off_value": 0.01}, "mixup": {"alpha": 1.0}}
    robust = common.mnist_run(attack=common.MNIST_PGD, targets=targets)
    return common.mnist_experiment("Soft labels on MNIST", robust=robust)
