"""Adversarial weight perturbation on CIFAR-10 (AT-AWP, Wu et al., 2020): both images and weights are attacked.

    python -m advjax.main --config=configs/cifar_weight_perturbation.py

Not run yet.  For a ResNet-18, the MAIR benchmark, with its own recipe, lists 50.8% under AutoAttack.
"""

from configs import common


def get_config():
    """The experiment."""
    robust = common.cifar_run(attack=common.CIFAR_PGD, weight_perturbation=0.005)
    return common.cifar_experiment("Adversarial weight perturbation on CIFAR-10", robust=robust)
