"""What each ingredient of ``configs/cifar_robust.py`` brings to a network that two cores can train.

    python -m docs.results.robust_ingredients OTHERS.npz
    python -m advjax.main --config=docs/results/robust_ingredients.py:OTHERS.npz

All networks are the recipe's PreActResNet-18 at an eighth of its width, on a tenth of CIFAR-10.  ``plain`` is
adversarial training with ReLU, with labels, weights and batches as they are; the runs after it add one ingredient each,
and ``all`` is the recipe.  Training attacks take 3 steps instead of 10.  The first command writes the training images
that no other run sees to a file; ``extra`` draws two thirds of every batch from it, for about as many steps.  These are
real images: what generated ones can bring at best.
"""

import sys

import numpy as np

from advjax.experiment.build_data import training_subset
from advjax.experiment.from_config import from_config
from configs import cifar_robust, common

WITHOUT = {"targets": {"order": ()}, "before_attack": {"order": ()}, "average": None}
SHARE = 0.1
SMALL = {"epochs": 15, "batch_size": 64, "train_fraction": SHARE}
FEW_STEPS = {"num_steps": 3, "step_size": "4/255"}


def get_config(extra=""):
    """The experiment; ``extra``, the file of the first command, adds the run of that name."""
    recipe = run(use_pgd=False)
    alone = {
        "silu": run(activation="silu", **WITHOUT),
        "trades": run(use_pgd=False, activation="relu", **WITHOUT),
    }
    for name, key in (("averaged", "average"), ("smoothed", "targets"), ("cutmix", "before_attack")):
        alone[name] = run(activation="relu", **{**WITHOUT, key: recipe[key]})
    if extra:
        # An epoch passes over the run's own images, 21 of a batch: five have 1,170 steps, the fifteen of others 1,155.
        alone["extra"] = run(activation="relu", **WITHOUT, epochs=5, extra_images={"file": extra, "share": 2 / 3})
    return common.cifar_experiment(
        "Ingredients of robust networks, small", plain=run(activation="relu", **WITHOUT), **alone, all=recipe
    )


def run(use_pgd=True, activation="silu", **changes):
    """The recipe, small, with some of its ingredients changed."""
    network = {"name": "dm_preact_resnet18", "width": 0.125, "activation": activation}
    made = cifar_robust.robust_run(network, use_pgd, **{**SMALL, **changes})
    made["attack"] = {**made["attack"], **FEW_STEPS}
    made["optimizer"]["schedule"] = {"name": "cosine", "learning_rate": 0.1, "warmup": 100}
    return made


def write_others(path):
    """Writes the training images that are in no run's share."""
    config = get_config()
    experiment = from_config(config)
    loaded = experiment.load_data()
    chosen = training_subset(loaded, SHARE, experiment.seed)
    others = loaded.train.take(np.flatnonzero(~np.isin(loaded.train.index, chosen.index)))
    np.savez(path, images=others.images, labels=others.labels)
    print(f"{len(others.labels)} images besides {len(chosen.labels)}: {path}")


if __name__ == "__main__":
    write_others(sys.argv[1])
