"""Cross-architecture adversarial augmentation (Ali et al., 002): ResNets learn from FGSM images made on a ResNet18.

    python -m advjax.main --config=configs/cross_architecture.py:mnist

Also ``:cifar10`` and ``:cats_vs_dogs``.  For each network three runs: as it is (``resnet18``), with conventional
augmentation (``resnet18_augmented``, the control), and with augmentation of the images and of their three FGSM copies
(``resnet18_retrained``).  The rows made on a network itself are the paper's fresh attacks; those made on ``resnet18``,
``resnet50`` or ``resnet101`` its old attacked images.  PGD shows what one-step training hides.  Published for
MNIST: clean 97.4 to 98.7 % before and 99.2 to 99.3 % after.  In full not run yet; small networks on a tenth of MNIST,
an hour of one CPU core, are in docs/results/cross_architecture_mnist.md, with a control of as many steps.
"""

from advjax.experiment import defaults
from advjax.papers.join import publish

NETWORKS = {"resnet18": "ResNet18", "resnet50": "ResNet50", "resnet101": "ResNet101"}
"""Our names and those of the tables."""
SIDES = {"mnist": 0, "cifar10": 0, "cats_vs_dogs": 224}
"""Sides to which images are resized."""


def get_config(data: str = "mnist"):
    """The experiment on one of the three data sets of the paper."""
    augmentation = {
        "order": (*(() if data == "mnist" else ("horizontal_flip",)), "affine", "brightness", "gaussian_noise"),
        "horizontal_flip": {"probability": 0.5},
        "affine": {"rotation_degrees": 15.0, "shift_fraction": 0.1, "scale_limits": (0.9, 1.1), "shear_degrees": 10.0},
        "brightness": {"limit": 0.2},
        "gaussian_noise": {"std": 0.02},
    }
    fgsm = {f"fgsm_{i}": {"name": "fgsm", "norm": "linf", "epsilon": f"0.0{i}"} for i in (1, 2, 3)}
    pgd = {"name": "pgd", "norm": "linf", "epsilon": "0.03", "num_steps": 10, "step_size": "0.0075"}
    # Copies of large images are many gigabytes: in 8 bits they are a quarter, and lose up to 1/255 of what FGSM added.
    copies = {"order": tuple(fgsm), "made_on": "resnet18", "format": "uint8" if SIDES[data] else "float32", **fgsm}

    def run(network, **changes):
        schedule = {"name": "cosine", "learning_rate": 0.1}
        return defaults.run(
            model={"name": network, "width": 1.0, "stem": "imagenet"},
            epochs=60,
            patience=10,
            optimizer={"schedule": schedule, "momentum": 0.9, "weight_decay": 5e-4},
            undersample=True,
            **changes,
        )

    runs = {network: run(network) for network in NETWORKS}
    runs |= {f"{network}_augmented": run(network, augmentation=augmentation) for network in NETWORKS}
    runs |= {f"{network}_retrained": run(network, augmentation=augmentation, copies=copies) for network in NETWORKS}
    config = defaults.experiment(
        title=f"Cross-architecture adversarial augmentation on {data}",
        data={
            "name": data,
            "train_split": "train" if data == "cats_vs_dogs" else "train+test",
            "fractions": (0.7, 0.1, 0.2),
            "image_size": SIDES[data],
            "stream": SIDES[data] > 0,
        },
        runs=tuple(runs),
        run=runs,
        evaluation={
            "attacks": {"order": (*fgsm, "pgd_10"), **fgsm, "pgd_10": pgd},
            "made_on": tuple(NETWORKS),
            "batch_size": 256,
            "pictured": "fgsm_3",
            # The networks of the paper lose more at 0.03 than such small changes explain: where do ours lose as much?
            "curve": {
                "attack": {"name": "fgsm", "norm": "linf"},
                "epsilons": ("0", "0.01", "0.02", "0.03", "0.06", "0.1", "0.15", "0.2", "0.3"),
                "num_examples": 1024,
            },
        },
    )
    publish(config, _published(data))
    return config


def _published(data):
    """Table 1: clean accuracy before and after."""
    trainings = {"": "standard", "_retrained": "cross_arch_adv_aug"}
    for ours, theirs in NETWORKS.items():
        for suffix, training in trainings.items():
            run = f"{ours}{suffix}"
            found = {"table": "002_table1", "model": theirs, "dataset": f"{data}/test20", "training": training}
            yield {**found, "attack": "none", "run": run, "our_attack": "clean"}
