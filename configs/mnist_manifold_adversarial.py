"""Manifold mixup of adversarial images on MNIST (mixup report 001, section 3.6, in its sound form).

    python -m advjax.main --config=configs/mnist_manifold_adversarial.py

Images are attacked, then mixed at one of five places.  Expected numbers: not run yet.
"""

from configs import common


def get_config():
    """The experiment."""
    objective = {"name": "manifold_mixup", "loss": {"name": "cross_entropy"}, "alpha": 2.0}
    robust = common.mnist_run(attack=common.MNIST_PGD, objective=objective)
    return common.mnist_experiment("Manifold mixup of adversarial images on MNIST", robust=robust)
