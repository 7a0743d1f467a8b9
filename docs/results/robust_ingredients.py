"""What each ingredient of ``configs/cifar_robust.py`` brings to a network that two cores can train.

    python -m advjax.main --config=docs/results/robust_ingredients.py

All networks are the recipe's PreActResNet-18 at an eighth of its width, on a tenth of CIFAR-10.  ``plain`` is
adversarial training with ReLU, with labels, weights and batches as they are; the runs after it add one ingredient each,
and ``all`` is the recipe.  Training attacks take 3 steps instead of 10.
"""

from configs import cifar_robust, common

WITHOUT = {"targets": {"order": ()}, "before_attack": {"order": ()}, "average": None}
SMALL = {"epochs": 15, "batch_size": 64, "train_fraction": 0.1}
FEW_STEPS = {"num_steps": 3, "step_size": "4/255"}


def get_config():
    """The experiment."""
    recipe = run(use_pgd=False)
    alone = {
        "silu": run(activation="silu", **WITHOUT),
        "trades": run(use_pgd=False, activation="relu", **WITHOUT),
    }
    for name, key in (("averaged", "average"), ("smoothed", "targets"), ("cutmix", "before_attack")):
        alone[name] = run(activation="relu", **{**WITHOUT, key: recipe[key]})
    return common.cifar_experiment(
        "Ingredients of robust networks, small", plain=run(activation="relu", **WITHOUT), **alone, all=recipe
    )


def run(use_pgd=True, activation="silu", **changes):
    """The recipe, small, with some of its ingredients changed."""
    network = {"name": "dm_preact_resnet18", "width": 0.125, "activation": activation}
    made = cifar_robust.robust_run(network, use_pgd, **SMALL, **changes)
    made["attack"] = {**made["attack"], **FEW_STEPS}
    made["optimizer"]["schedule"] = {"name": "cosine", "learning_rate": 0.1, "warmup": 100}
    return made
