"""A config of two runs on digits that takes seconds, most of them to start: the network is one linear layer."""

import flax.linen as nn

from advjax.experiment import defaults
from advjax.models import blocks

LINF = {"norm": "linf", "epsilon": "0.1"}
PGD = {"name": "pgd", **LINF, "num_steps": 3, "step_size": "0.05"}


class Linear(blocks.Classifier):
    """The model of both runs."""

    num_classes: int = 10

    def make_blocks(self):
        return {"flat": lambda images: images.reshape(len(images), -1), "head": nn.Dense(self.num_classes)}


def get_config():
    """Checkpoints every nine steps; the second run trains on stored adversarial copies of the first one's images."""
    model = {"name": "support.fault_experiment:Linear"}
    plan = {"batch_size": 32, "num_steps": 48, "train_fraction": 0.2, "log_every": 5}
    return defaults.experiment(
        title="Faults",
        data={"name": "digits", "num_validation": 40},
        runs=("base", "robust"),
        run={
            "base": defaults.run(model=model, **plan),
            "robust": defaults.run(
                model=model,
                start="base",
                attack=PGD,
                copies={"order": ("fgsm",), "made_on": "base", "fgsm": {"name": "fgsm", **LINF}},
                **plan,
            ),
        },
        evaluation={
            "attacks": {"order": ("fgsm", "pgd"), "fgsm": {"name": "fgsm", **LINF}, "pgd": {**PGD, "num_restarts": 2}},
            "num_examples": 60,
            "batch_size": 20,
            "num_checked": 0,
            "pictured": "pgd",
        },
    )
