"""Intelligent mixup on CIFAR-10 (Agarwal et al., 000): training goes on, beside every image its mix with a noisy twin.

    python -m advjax.main --config=configs/cifar_intelligent_mixup.py

The learning rate falls on plateaus of the training loss, at Keras's factor and patience: the paper tells neither.  The
noise that it calls 0.05 is read as a variance.  The rows made on ``base`` follow the paper; those made on
``mixed`` itself say whether it is robust.  Expected numbers: not run yet.
"""

from typing import Any

from advjax import defaults
from advjax.papers.join import publish
from configs import common


def get_config():
    """The experiment."""

    def run(**changes):
        optimizer = {"name": "adam", "schedule": {"name": "reduce_on_plateau", "learning_rate": 1e-4}}
        model = {"name": "vgg16", "width": 1.0}
        return defaults.run(model=model, batch_size=32, epochs=30, optimizer=optimizer, log_every=500, **changes)

    twins = {"order": ("noisy_twins",), "noisy_twins": {"level": 0.05, "reading": "variance", "model": "base"}}
    config = common.cifar_experiment(
        "Intelligent mixup on CIFAR-10", base=run(), mixed=run(start="base", targets=twins)
    )
    linf = {"norm": "linf", "epsilon": "0.03"}
    config.evaluation.attacks = {
        "order": ("fgsm", "pgd_100", "carlini_wagner_l2", "deepfool"),
        "fgsm": {"name": "fgsm", **linf},
        "pgd_100": {"name": "pgd", **linf, "num_steps": 100, "step_size": "0.00075"},
        "carlini_wagner_l2": {"name": "carlini_wagner_l2", "norm": "l2", "epsilon": "inf"},
        "deepfool": {"name": "deepfool", "norm": "l2", "epsilon": "inf"},
    }
    publish(config, _published())
    return config


def _published() -> tuple[dict[str, Any], ...]:
    """Clean, and the attacks that were made on the base and whose size the paper gives.

    What they leave of the base itself is left out: it depends on their labels, which the paper does not tell.
    """
    found = {"table": "000_table3"}
    mixed = {**found, "training": "intelligent_mixup:GN05", "run": "mixed"}
    return (
        {**found, "training": "standard", "run": "base", "attack": "none", "our_attack": "clean"},
        {**mixed, "attack": "none", "our_attack": "clean"},
        {**mixed, "attack": "FGSM:eps0.03", "our_attack": "fgsm"},
        {**mixed, "attack": "PGD100:eps0.03", "our_attack": "pgd_100"},
    )
