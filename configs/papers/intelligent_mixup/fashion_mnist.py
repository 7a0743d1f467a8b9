"""Intelligent mixup on Fashion-MNIST (Agarwal et al., 000): Table 4, with the network "custom 2".

    python -m advjax.main --config=configs/papers/intelligent_mixup/fashion_mnist.py

The method and the attacks are those of configs/cifar_intelligent_mixup.py, with an epsilon of 0.3 for gray images, and
so are the ablations ``noise_only`` and ``plain_mixup``.  Not run yet.
"""

from typing import Any

from advjax.papers.join import publish
from configs import cifar_intelligent_mixup


def get_config():
    """The experiment."""
    config: Any = cifar_intelligent_mixup.get_config()
    config.title = "Intelligent mixup on Fashion-MNIST"
    config.data.name = "fashion_mnist"
    for run in config.run.values():
        run.model = {"name": "custom2", "width": 1.0}
    config.evaluation.attacks = cifar_intelligent_mixup.attacks(0.3)
    config.evaluation.num_examples = 0
    levels = {"mixed": "GN05", "mixed_08": "GN08"}
    publish(config, tuple(cifar_intelligent_mixup.published("000_table4", "eps0.3", levels)))
    return config
