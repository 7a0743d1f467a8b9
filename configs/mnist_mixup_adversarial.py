"""Mixup of adversarial images on MNIST (mixup report 001, section 3.6, in its sound form).

    python -m advjax.main --config=configs/mnist_mixup_adversarial.py

Images are attacked unmixed, then mixed.  Expected numbers: not run yet.
"""

from configs import common


def get_config():
    """The experiment."""
    robust = common.mnist_run(attack=common.MNIST_PGD, targets={"order": ("mixup",), "mixup": {"alpha": 1.0}})
    return common.mnist_experiment("Mixup of adversarial images on MNIST", robust=robust)
