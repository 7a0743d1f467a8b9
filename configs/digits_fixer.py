"""Fixers in a digit classifier: the whole job on data that need no network.

    python -m advjax.main --config=configs/digits_fixer.py

scikit-learn's 1,797 handwritten digits, 8x8 pixels with 17 grey levels.  epsilon is 0.15 of the pixel range, not quite
two and a half of these levels: people still read the digits, and AutoPGD leaves the undefended network fewer than one
image in twenty.  In so narrow a network fixers that first reduce the channels (the paper's factor is 4) have too little
to work with, and the distillation term at full weight (1) leaves too little of the correction: both are milder here.
"""

from advjax.experiment import defaults

EPSILON = "0.15"


def get_config():
    """The experiment."""
    augmentation = {"order": ("pad_crop",), "pad_crop": {"padding": 1, "mode": "constant"}}
    loss = {"name": "focal", "gamma": 2.0}
    base = defaults.run(
        model={"name": "resnet9", "width": 0.25, "pool3": False, "head": "average"},
        epochs=20,
        batch_size=64,
        objective={"loss": loss},
        augmentation=augmentation,
        optimizer={"weight_decay": 5e-4},
        log_every=20,
        validate_every_epochs=5,
    )
    fixer = defaults.run(
        model={
            "name": "fixers",
            "base": "base",
            "after": ("res1", "res2"),
            "delta": 1.0,
            "activation": "identity",
            "reduction": 1,
            "zero_last": True,
        },
        epochs=25,
        batch_size=64,
        objective={
            "name": "fixers",
            "loss": loss,
            "distillation": 0.3,
            "target": "natural",
            "tensor": "output",
            "norm": "rms",
        },
        attack={
            "name": "auto_pgd",
            "norm": "linf",
            "epsilon": EPSILON,
            "num_steps": 5,
            "returns": "best",
            "made_on": "base",
            "labels": "predicted",
        },
        augmentation=augmentation,
        optimizer={"schedule": {"peak_learning_rate": 0.05}},
        trainable="^patches_",
        log_every=20,
        validate_every_epochs=5,
    )
    linf = {"norm": "linf", "epsilon": EPSILON}
    return defaults.experiment(
        title="Fixers in a digit classifier",
        data={"name": "digits", "num_validation": 140},
        runs=("base", "fixer"),
        run={"base": base, "fixer": fixer},
        evaluation={
            "attacks": {
                "order": ("fgsm", "pgd_50", "auto_pgd"),
                "fgsm": {"name": "fgsm", **linf},
                "pgd_50": {"name": "pgd", **linf, "num_steps": 50, "step_size": "0.015", "random_start": False},
                "auto_pgd": {"name": "auto_pgd", **linf, "num_steps": 25, "returns": "best"},
            },
            "transfer_labels": "predicted",
            "protocol": "faithful",
            "batch_size": 120,
            "pictured": "auto_pgd",
            # The base has nothing to hide: a minute would go into saying so.
            "checked": ("fixer",),
        },
    )
