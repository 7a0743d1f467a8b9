"""Partial PGD on MNIST: adversarial images mixed with clean ones (mixup report 001, section 3.7, in its sound form).

    python -m advjax.main --config=configs/mnist_partial_pgd.py

Expected numbers: not run yet.
"""

from configs import common


def get_config():
    """The experiment."""
    targets = {"order": ("partial_mix",), "partial_mix": {"alpha": 1.0}}
    robust = common.mnist_run(attack=common.MNIST_PGD, targets=targets)
    return common.mnist_experiment("Partial PGD on MNIST", robust=robust)
