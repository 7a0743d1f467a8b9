"""PGD adversarial training on CIFAR-10 (Madry et al., 2018).

    python -m advjax.main --config=configs/cifar_adversarial.py

Every training image is attacked on the current network.  Not run yet.  For a ResNet-18, the MAIR benchmark, with its
own recipe, lists 48.7% under AutoAttack.
"""

from configs import common


def get_config():
    """The experiment."""
    attack = {**common.CIFAR_PGD, "made_on": "self", "labels": "true"}
    return common.cifar_experiment("Adversarial training on CIFAR-10", robust=common.cifar_run(attack=attack))
