"""Baselines for the fixers: fine-tuning the whole classifier, and fixers whose training attack sees them.

    python -m advjax.main --config=configs/cifar_fixer_baselines.py

All start from the base of configs/cifar_fixer.py and see the same 4,500 images.  ``transfer`` is row "adv train" of
the fixer paper (003): all weights are trained, on clean images and on images attacked through the frozen base.
``adversarial`` is its sound counterpart, attacked directly, and ``honest_fixer`` trains fixers attacked through the
fixers, both with true labels.  ``:fgsm`` and ``:carlini_wagner`` after the file name train ``transfer`` against the
paper's other attacks (Fig. 6).  Published for "transfer": clean 79.5%, AutoPGD crafted on the base 77.5%.  Measured
only for small networks and few epochs (docs/papers/003_table1.mini.md).
"""

from advjax.papers.join import publish
from configs import cifar_fixer, common


def get_config(attack: str = "auto_pgd"):
    """The experiment, "transfer" trained against one of ``cifar_fixer.TRAINING_ATTACKS``."""
    config: common.Config = cifar_fixer.get_config(attack)
    fixer = config.run.fixer.to_dict()
    whole = {
        **fixer,
        "model": config.run.base.model.to_dict(),
        "start": "base",
        "objective": {"name": "supervised", "loss": fixer["objective"]["loss"], "on": "both"},
        "optimizer": {**fixer["optimizer"], "weight_decay": 5e-4},
        "trainable": "",
    }
    config.title = "Fine-tuning the whole classifier, and fixers attacked directly"
    config.runs = ("base", "transfer", "adversarial", "honest_fixer")
    del config.run.fixer
    config.run.transfer = whole
    config.run.adversarial = {**whole, "attack": cifar_fixer.ON_ITSELF}
    config.run.honest_fixer = {**fixer, "attack": cifar_fixer.ON_ITSELF}
    entries = cifar_fixer.table_1("transfer", "ResNet9:adv train")
    publish(config, entries if attack == "auto_pgd" else cifar_fixer.base_of_table_1())
    return config
