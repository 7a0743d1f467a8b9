"""What makes networks robust on CIFAR-10 today, in one recipe for an accelerator: TRADES and what has been added to it.

    python -m advjax.main --config=configs/cifar_robust.py                # PreActResNet-18
    python -m advjax.main --config=configs/cifar_robust.py:wide           # WRN-28-10
    python -m advjax.main --config=configs/cifar_robust.py:wide,pgd       # adversarial training instead of TRADES
    python -m advjax.main --config=configs/cifar_robust.py:wide --config.run.robust.extra_images.file=1m.npz

Both are DeepMind's variants with SiLU (Gowal et al., 2020), with averaged weights, smoothed labels, and Nesterov
momentum; the checkpoint that is the most robust on 1,000 validation images is selected, which is early stopping (Rice
et al., 2020).  Without extra images, batches are augmented by CutMix before the attack (Rebuffi et al., 2021).
``extra_images.file`` is an .npz file of images and labels, such as the published ones of diffusion models, from which
70% of every batch are then drawn (Wang et al., 2023); leave CutMix out beside it, by
``--config.run.robust.before_attack.order='()'``.

Not run yet, but for a small network and 15 epochs, where most of these ingredients do not help
(docs/results/robust_ingredients.md).  Under AutoAttack at 8/255, RobustBench lists 67.31% for a WRN-28-10 that was
trained with 20 million generated images (Wang et al., 2023), 58.04% for a WRN-34-10 and 52.48% for a ResNet-18 without
any (Addepalli et al., 2021 and 2022).
"""

from advjax.types import UserError
from configs import common

NETWORKS = {
    "preact": {"name": "dm_preact_resnet18", "width": 1.0},
    "wide": {"name": "dm_wide_resnet", "depth": 28, "width": 10.0},
}


def get_config(options=""):
    """The experiment; ``options`` are "preact" or "wide", and "trades" or "pgd", in any order."""
    chosen = {option for option in options.split(",") if option}
    if not chosen <= {*NETWORKS, "trades", "pgd"} or {*NETWORKS} <= chosen or {"trades", "pgd"} <= chosen:
        raise UserError(f"configs/cifar_robust.py:{options}: give preact or wide, and trades or pgd, as in wide,pgd")
    network = NETWORKS["wide" if "wide" in chosen else "preact"]
    return common.cifar_experiment("Robust networks on CIFAR-10", robust=robust_run(network, "pgd" in chosen))


def robust_run(network, use_pgd=False, **changes):
    """The recipe for a network."""
    loss = {"name": "cross_entropy"}
    recipe = {
        "model": {**network, "mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)},
        "epochs": 100,
        "batch_size": 512,
        "attack": {"name": "most_divergent", **common.CIFAR_LINF, "num_steps": 10, "step_size": "2/255"},
        "validation_attack": {**common.CIFAR_PGD, "num_steps": 20, "returns": "best"},
        "objective": {"name": "trades", "loss": loss, "beta": 5.0},
        "before_attack": {"order": ("cutmix",), "cutmix": {"alpha": 1.0, "per_sample": True}},
        "targets": {"order": ("label_smoothing",), "label_smoothing": {"strength": 0.1}},
        "optimizer": {
            "name": "sgd",
            "schedule": {"name": "cosine", "learning_rate": 0.2, "warmup": 500},
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 5e-4,
        },
        "average": {"name": "ema", "decay": 0.995},
        "select_metric": "attacked_accuracy",
    }
    if use_pgd:
        recipe |= {"attack": common.CIFAR_PGD, "objective": {"name": "supervised", "loss": loss}}
    return common.cifar_run(**(recipe | changes))
