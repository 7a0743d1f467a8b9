"""Honest fixers and adversarial training, at equal data and steps, at a size that two cores can train.

    python -m advjax.main --config=docs/results/honest_fixers.py

The base is that of scale ``mini`` of ``advjax.papers run 003_table1``: a ResNet9 at an eighth of its width, trained for
5 epochs.  Both runs start from it and see the same 4,500 images, attacked by 3 steps of PGD on what is trained:
``honest_fixer`` trains fixers in the frozen base, ``adversarial`` all weights.  A number after a colon is that of their
epochs, of 36 steps each, by default 40.
"""

from advjax.experiment import defaults
from configs import cifar_fixer, cifar_fixer_baselines, common

PGD = {"name": "pgd", **cifar_fixer.LINF}
ON_ITSELF = {"made_on": "self", "labels": "true"}
TRAINING_ATTACK = {**PGD, "num_steps": 3, "step_size": "4/255", **ON_ITSELF}
VALIDATION_ATTACK = {**PGD, "num_steps": 10, "step_size": "2/255", "returns": "best", **ON_ITSELF}


def get_config(epochs="40"):
    """The experiment."""
    config: common.Config = cifar_fixer_baselines.get_config()
    config.title = "Honest fixers and adversarial training, small"
    config.runs = ("base", "adversarial", "honest_fixer")
    del config.run.transfer
    for name in ("base", "adversarial"):
        config.run[name].model.width = 1 / 8
    config.run.base.epochs = 5
    for name in ("adversarial", "honest_fixer"):
        config.run[name].update(epochs=int(epochs), validate_every_epochs=10, select_metric="attacked_accuracy")
        config.run[name].update(attack=TRAINING_ATTACK, validation_attack=VALIDATION_ATTACK)
    config.evaluation = defaults.changed(
        defaults.EVALUATION,
        {
            "attacks": {
                "order": ("pgd_50", "auto_attack"),
                "pgd_50": {**PGD, "num_steps": 50, "step_size": "1/255", "returns": "best"},
                "auto_attack": {"name": "auto_attack", **cifar_fixer.LINF},
            },
            "num_examples": 1000,
            "num_checked": 0,
        },
    )
    config.published, config.published_for = (), {}
    return config
