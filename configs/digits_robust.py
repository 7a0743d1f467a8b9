"""What holds up in a digit classifier: adversarial training, and fixers trained against attacks that see them.

    python -m advjax.main --config=configs/digits_robust.py

The data, the base and the attacks are those of configs/digits_fixer.py.  ``adversarial`` trains the whole network on
PGD examples of itself (Madry et al., 2018); ``honest_fixer`` trains only the fixers, on PGD examples of the patched
network with true labels.  Both start from the base.
"""

from advjax.experiment import defaults
from configs import common, digits_fixer

ATTACK = {"name": "pgd", **digits_fixer.LINF, "num_steps": 7, "step_size": "0.04", "returns": "last"}


def get_config():
    """The experiment."""
    config: common.Config = digits_fixer.get_config()
    method = {
        **digits_fixer.RECIPE,
        "epochs": 30,
        "objective": {"loss": {"name": "cross_entropy"}},
        "attack": {**ATTACK, "made_on": "self", "labels": "true"},
    }
    fixers, whole = config.run.fixer.model.to_dict(), config.run.base.model.to_dict()
    schedule = {"schedule": {"peak_learning_rate": 0.05}}
    config.title = "Adversarial training and honest fixers in a digit classifier"
    config.runs = ("base", "adversarial", "honest_fixer")
    del config.run.fixer
    config.run.adversarial = defaults.run(**method, model=whole, start="base", optimizer={"weight_decay": 5e-4})
    config.run.honest_fixer = defaults.run(**method, model=fixers, optimizer=schedule, trainable="^patches_")
    config.evaluation.checked = ("adversarial", "honest_fixer")
    return config
