"""MART on CIFAR-10 (Wang et al., 2020): more weight on images that are misclassified without any attack.

    python -m advjax.main --config=configs/cifar_mart.py

Not run yet.  For a ResNet-18, the MAIR benchmark, with its own recipe, lists 47.5% under AutoAttack.
"""

from configs import common


def get_config():
    """The experiment."""
    robust = common.cifar_run(
        objective={"name": "mart", "loss": {"name": "boosted_cross_entropy"}, "beta": 5.0}, attack=common.CIFAR_PGD
    )
    return common.cifar_experiment("MART on CIFAR-10", robust=robust)
