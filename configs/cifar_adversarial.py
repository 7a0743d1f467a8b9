"""Adversarial training with PGD on CIFAR-10 (Madry et al., 2018).

    python -m advjax.main --config=configs/cifar_adversarial.py

Every image is attacked on the network as it is.  Not run yet.  For a ResNet18 the MAIR list has 48.7 % under
AutoAttack, on a recipe of its own.
"""

from configs import common


def get_config():
    """The experiment."""
    attack = {**common.CIFAR_PGD, "made_on": "self", "labels": "true"}
    return common.cifar_experiment("Adversarial training on CIFAR-10", robust=common.cifar_run(attack=attack))
