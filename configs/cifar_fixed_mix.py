"""Training on images mixed at a fixed weight, labels unmixed: "mixup inference" in the code of the report 004.

    python -m advjax.main --config=configs/cifar_fixed_mix.py

``--config.run.mixed.targets.fixed_mix.weight=`` .1, .2, .4, .6, .8 and 1 are the points of its Fig. 3.  Expected
numbers: not run yet.
"""

from configs import common


def get_config():
    """The experiment."""
    mixed = common.small_cifar_run(targets={"order": ("fixed_mix",), "fixed_mix": {"weight": 0.6}})
    return common.small_cifar_experiment("Training on fixed mixes", plain=common.small_cifar_run(), mixed=mixed)
