"""Soft labels and mixup in adversarial training on MNIST (mixup report 001, section 3.4, in its sound form).

    python -m advjax.main --config=configs/mnist_soft_labels.py

The report's off values are 0.001 to 0.01: ``--config.run.soft_labels.targets.soft_labels.off_value=0.001``.  "mixup"
is the run of mnist_mixup_adversarial.py, the same without soft labels.

"vanilla" is plain adversarial training, the same in the four such configs: take it from another run of one with
``--config.run.vanilla.checkpoint=WORKDIR/vanilla``.  Expected numbers: not run yet.
"""

from configs import common


def get_config():
    """The experiment."""
    mixup = {"order": ("mixup",), "mixup": {"alpha": 1.0}}
    soft_labels = {**mixup, "order": ("soft_labels", "mixup"), "soft_labels": {"off_value": 0.01}}
    return common.mnist_experiment(
        "Soft labels on MNIST",
        mixup=common.mnist_run(targets=mixup),
        soft_labels=common.mnist_run(targets=soft_labels),
    )
