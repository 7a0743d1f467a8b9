"""Denoising blocks (Xie et al., 2019) in the classifier of the fixer paper (003), row "denoise".

    python -m advjax.main --config=configs/cifar_denoising.py

The whole network is trained, on images attacked through the frozen base as everywhere in that paper.  For real
adversarial training, use ``--config.run.denoise.attack.made_on=self --config.run.denoise.attack.labels=true``;
``--config=configs/cifar_denoising.py:fgsm`` and ``:carlini_wagner`` train against the paper's other attacks (Fig. 6).
Published: clean 75.6%, AutoPGD crafted on the base 73.2%.  Measured only small
(docs/papers/003_table1.mini.md).
"""

from advjax.papers.join import publish
from configs import cifar_fixer, common


def get_config(attack: str = "auto_pgd"):
    """The experiment, trained against one of ``cifar_fixer.TRAINING_ATTACKS``."""
    config: common.Config = cifar_fixer.get_config(attack)
    denoise = config.run.fixer.to_dict()
    norm = {key: config.run.base.model[key] for key in ("norm_decay", "norm_epsilon")}
    denoise["model"] = {"name": "denoising", "base": "base", "after": ("res1", "res2"), **norm}
    denoise["objective"] = {"name": "supervised", "loss": {"name": "focal", "gamma": 2.0}, "on": "both"}
    denoise["trainable"] = ""
    # Only fixers are trained without weight decay.
    denoise["optimizer"]["weight_decay"] = 5e-4
    config.title, config.runs = "Denoising blocks in a CIFAR-10 classifier", ("base", "denoise")
    del config.run.fixer
    config.run.denoise = denoise
    entries = cifar_fixer.table_1("denoise", "ResNet9+denoise")
    publish(config, entries if attack == "auto_pgd" else cifar_fixer.base_of_table_1())
    return config
