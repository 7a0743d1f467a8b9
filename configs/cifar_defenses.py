"""Five defenses of one small CIFAR-10 network, compared under oblivious, transfer and adaptive attacks.

    python -m advjax.main --config=configs/cifar_defenses.py

All are built on the 62,006-parameter network of the Dauphine report (004), so that a CPU suffices: random
self-ensemble (``noisy+ensemble``), mixup inference (``mixed+mixup_inference``), distribution regression over resized
copies (``drn+copies``), denoising blocks and fixers.  On two CPU cores (2026-11-21, Python 3.11, JAX 0.10.2, seed 0),
training the six runs took 17 min, in two sessions, and the evaluation 29 min, with a partly warm compilation cache.
Robust accuracy at 8/255 on the first 128 test images: base, denoise and fixer 0.0%, noisy+ensemble 3.1%,
mixed+mixup_inference 1.6%, drn+copies 1.6%; clean accuracy 70.3, 54.7, 60.9, 63.3, 56.2 and 68.8%.
"""

from advjax.experiment import defaults
from configs import common


def get_config():
    """The experiment."""
    runs = _runs()
    draws = {"num_draws": 10, "num_votes": 3, "num_samples": 20}
    noises = defaults.gaussian_noises()
    pgd = {"name": "pgd", "norm": "linf", "num_steps": 20, "step_size": "2/255"}
    return defaults.experiment(
        title="Five defenses of a small CIFAR-10 classifier",
        data={"name": "cifar10", "num_validation": 1024},
        runs=tuple(runs),
        run=runs,
        evaluation={
            "attacks": {
                "order": ("pgd_20", "auto_pgd", "square", *noises),
                "pgd_20": {**pgd, **common.CIFAR_LINF},
                "auto_pgd": {"name": "auto_pgd", **common.CIFAR_LINF, "num_steps": 20, "loss": "dlr"},
                "square": {"name": "square", **common.CIFAR_LINF, "num_queries": 300},
                **noises,
            },
            "made_on": "base",
            "defenses": {
                "order": ("ensemble", "mixup_inference", "copies"),
                "ensemble": {"name": "random_self_ensemble", "run": "noisy", **draws},
                "mixup_inference": {
                    "name": "mixup_inference",
                    "run": "mixed",
                    "mode": "other",
                    **draws,
                    "num_mixes": 5,
                },
                "copies": {"name": "random_self_ensemble", "run": "drn", **draws},
            },
            "curve": {"attack": pgd, "epsilons": ("0", "2/255", "4/255", "8/255", "16/255"), "num_examples": 64},
            "num_examples": 128,
            "num_checked": 24,
            # The other two need over a hundred passes per prediction: their report cards would take many minutes.
            "checked": ("base", "noisy", "denoise", "fixer"),
            "batch_size": 128,
            "pictured": "pgd_20",
        },
    )


def _runs():
    places = ("conv1", "conv2")
    on_base = {"name": "auto_pgd", **common.CIFAR_LINF, "num_steps": 5, "returns": "best", "made_on": "base"}

    def run(**changes):
        optimizer = {"schedule": {"name": "one_cycle", "peak_learning_rate": 0.05}, "weight_decay": 5e-4}
        augmentation = {"order": ("horizontal_flip",), "horizontal_flip": {"probability": 0.5}}
        recipe = {"epochs": 10, "batch_size": 128, "optimizer": optimizer, "augmentation": augmentation}
        return common.small_cifar_run(**(recipe | {"select": "best", "log_every": 100} | changes))

    return {
        "base": run(),
        "noisy": run(model={"name": "net62k", "width": 1.0, "noise": 0.2}),
        "mixed": run(targets={"order": ("mixup",), "mixup": {"alpha": 1.0}}),
        "drn": run(
            model={"name": "distribution_regression", "base": "base", "num_copies": 5, "smallest": 26, "largest": 31},
            train_fraction=0.1,
            epochs=2,
            optimizer={"name": "adam", "schedule": {"name": "constant", "learning_rate": 0.1}},
            trainable="^drn",
        ),
        "denoise": run(model={"name": "denoising", "base": "base", "after": places}, epochs=2, attack=on_base),
        "fixer": run(
            model={"name": "fixers", "base": "base", "after": places, "reduction": 1, "zero_last": True},
            epochs=2,
            objective={"name": "fixers", "loss": {"name": "cross_entropy"}, "distillation": 0.3, "tensor": "output"},
            attack=on_base,
            trainable="^patches_",
        ),
    }
